"""The classification head in closed form: by hand, whatever the partition, and in whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fedmoe_app import ConfigError, ModelShape, Now, Run, make_scheme, read_metrics
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.closedhead import (
    EstimateHead,
    FeatureSums,
    FixedHead,
    Head,
    Sums,
    lda_head,
    rescaled,
    ridge_head,
)
from fedmoe_app.schemes.views import Outputs, RoundInfo
from tests.conftest import make_config
from tests.invariant.runs import GoldenRun
from tests.schemes.conftest import SharedRuns

SHAPE = ModelShape(1, 2, 1, head="score")
SUMS = FeatureSums("score")


def sums(features: Sequence[Sequence[float]], labels: Sequence[int], classes: int = 2) -> Sums:
    f = torch.tensor(features, dtype=torch.float64)
    right = torch.nn.functional.one_hot(torch.tensor(labels), classes).double()
    return Sums(right.sum(0), right.T @ f, f.T @ f)


def sent(features: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """What a client sends of its examples."""
    out = Outputs(features.double(), torch.zeros(len(labels), classes), labels)
    return {f"FeatureSums/{name}": t.float() for name, t in SUMS.of_output(out).items()}


def estimated(step: EstimateHead, parts: Sequence[dict[str, Tensor]], **values: Tensor) -> Any:
    ones = torch.ones(len(parts))
    now = Now({f"score.{k}": v for k, v in values.items()}, {}, RoundInfo(1, ones, ones, (), parts))
    change, _ = step.step(now, {})
    return {name: now.values[name] + moved for name, moved in change.items()}


# -- worked out by hand ------------------------------------------------------------------------

# Two classes, means (2, 0) and (0, 2), each with ±1 along its own axis: within-class scatter
# 2 on either axis, over n − C = 2 degrees of freedom: Σ = I.
EXAMPLE = ([[3.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 1.0]], [0, 0, 1, 1])


def test_lda_by_hand() -> None:
    """W = μ less the mean (1, 1): (1, −1), (−1, 1); b = −½·4 for both, so 0 after centring."""
    head = lda_head(sums(*EXAMPLE), 0.0, has_bias=True)
    assert head.weight.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert head.bias is not None
    assert head.bias.tolist() == [0.0, 0.0]


def test_the_bias_is_folded_along_the_mean_feature() -> None:
    """Means 2 and 4 on one axis, Σ = 1 (±½ of each: 4·¼ / 2 = ½, so ×2): see the numbers."""
    one_axis = sums([[2.5], [1.5], [4.5], [3.5]], [0, 0, 1, 1])
    free = lda_head(one_axis, 0.0, has_bias=True)
    # Σ = 1/2; W = 4, 8 less 6; b = −½·2·4, −½·4·8 = −4, −16 less −10.
    assert free.weight.tolist() == [[-2.0], [2.0]]
    assert free.bias is not None and free.bias.tolist() == [6.0, -6.0]
    folded = lda_head(one_axis, 0.0, has_bias=False)
    # m = 3: w + b·3/9.
    assert folded.bias is None
    assert folded.weight.flatten().tolist() == pytest.approx([0.0, 0.0])


def test_shrinkage_of_one_is_the_nearest_mean() -> None:
    """Σ̂ = tr/D·I: the covariance does not matter any more."""
    skewed = sums([[4.0, 0.0], [0.0, 0.0], [0.0, 2.5], [0.0, 1.5]], [0, 0, 1, 1])
    head = lda_head(skewed, 1.0, has_bias=True)
    ratio = head.weight / torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(ratio, ratio[0, 0].expand(2, 2))


def test_a_class_that_nobody_has_is_never_the_most_likely() -> None:
    generator = torch.Generator().manual_seed(7)
    f = torch.randn(60, 5, generator=generator, dtype=torch.float64) + 1.0
    labels = (torch.arange(60) % 3).tolist()  # of five classes
    total = sums(f.tolist(), labels, classes=5)
    for has_bias in (True, False):
        head = lda_head(total, 0.1, has_bias)
        assert torch.isfinite(head.weight).all()
        logits = f @ head.weight.T + (0 if head.bias is None else head.bias)
        assert set(logits.argmax(1).tolist()) <= {0, 1, 2}
    assert ridge_head(total, 0.1, False).weight[3:].abs().max() == 0


def test_one_example_a_class_is_no_division_by_zero() -> None:
    head = lda_head(sums([[1.0, 0.0], [0.0, 1.0]], [0, 1]), 0.1, has_bias=False)
    assert head.weight.argmax(dim=1).tolist() == [0, 1]


def test_ridge_by_hand() -> None:
    """S = diag(10, 10), tr/D = 10, γ = ½: λ = 5, rows (4, 0)/15 and (0, 4)/15."""
    head = ridge_head(sums(*EXAMPLE), 0.5, has_bias=False)
    torch.testing.assert_close(head.weight, 4 / 15 * torch.eye(2, dtype=torch.float64))


def test_ridge_with_intercept_gives_each_class_its_share_at_the_mean() -> None:
    head = ridge_head(sums(*EXAMPLE), 0.3, has_bias=True)
    assert head.bias is not None
    mean = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert (head.weight @ mean + head.bias).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("bias", [None, [0.5, -2.0, 0.0]])
def test_the_scale_is_the_root_mean_square_of_the_logits(bias: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    f = torch.randn(40, 4, generator=generator, dtype=torch.float64) - 0.5
    total = sums(f.tolist(), [0] * 10 + [1] * 30, classes=3)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    own = None if bias is None else torch.tensor(bias, dtype=torch.float64)
    head = rescaled(Head(weight, own), total, 1.5)
    logits = f @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits - logits.mean(dim=1, keepdim=True)
    assert float(logits.square().mean().sqrt()) == pytest.approx(1.5)
    assert rescaled(Head(weight, own), total, 0.0) == Head(weight, own)


# -- identities --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_whatever_the_partition_the_head_is_that_of_the_pooled_data(method: str) -> None:
    generator = torch.Generator().manual_seed(11)
    f, labels = torch.randn(90, 6, generator=generator), torch.arange(90) % 4
    step = EstimateHead(SUMS, method, 0.1, 2.0)
    old = torch.randn(4, 6, generator=generator)
    pooled = estimated(step, [sent(f, labels, 4)], weight=old)["score.weight"]
    # One client a class: label skew at its worst.
    by_class = [sent(f[labels == c], labels[labels == c], 4) for c in range(4)]
    found = estimated(step, by_class, weight=old)["score.weight"]
    torch.testing.assert_close(found, pooled, rtol=0, atol=1e-6)
    backwards = estimated(step, by_class[::-1], weight=old)["score.weight"]
    torch.testing.assert_close(backwards, pooled, rtol=0, atol=1e-6)


def test_ridge_of_one_client_is_centralised_ridge() -> None:
    """By the normal equations on the examples themselves, to 1e-6."""
    generator = torch.Generator().manual_seed(5)
    f, labels = torch.randn(50, 6, generator=generator), torch.arange(50) % 3
    x, y = f.double(), torch.nn.functional.one_hot(labels, 3).double()
    lam = 0.2 * float(x.square().sum()) / 6
    expected = torch.linalg.solve(x.T @ x + lam * torch.eye(6, dtype=torch.float64), x.T @ y).T
    step = EstimateHead(SUMS, "ridge", 0.2, 0.0)
    found = estimated(step, [sent(f, labels, 3)], weight=torch.zeros(3, 6))["score.weight"]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_batches_add_up() -> None:
    f = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(9) % 2
    whole, parts = sent(f, labels, 2), [sent(f[i : i + 4], labels[i : i + 4], 2) for i in (0, 4, 8)]
    for name, total in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), total)


# -- what is built, and what is refused --------------------------------------------------------


def head_scheme(**keys: Any) -> Any:
    return make_scheme(make_config(**{f"head.{k.replace('_', '-')}": v for k, v in keys.items()}))


def test_none_leaves_the_scheme_as_it_is() -> None:
    assert head_scheme() == make_scheme(make_config(scheme="fedavg"))


def test_when_the_head_is_estimated() -> None:
    before = Plan.of(head_scheme(closed_form="before"), SHAPE)
    assert len(before.server.before) == 1
    assert before.measured == [] and before.server.steps == ()
    assert before.client.freeze == FixedHead("score")
    every = Plan.of(head_scheme(closed_form="every-round", fixed=False), SHAPE)
    assert every.measured == [] and every.measured_apart == [SUMS]
    assert every.server.refresh == every.server.before
    assert every.client.freeze is None
    after = Plan.of(head_scheme(closed_form="after"), SHAPE)
    assert after.measured_apart == [SUMS]
    assert after.server.before == () and after.client.freeze is None


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Run(ModelShape(1, 2, 1)), "no classification head that is trained"),
        (Run(SHAPE, task="causal-lm"), "vocabulary"),
        (Run(SHAPE, task="multiple-choice"), "options are answers"),
        (Run(SHAPE, chosen=True), "experts-in-memory"),
        (Run(SHAPE, buffered=True), "buffered rounds"),
    ],
)
def test_a_run_without_such_a_head_is_refused(run: Run, reason: str) -> None:
    with pytest.raises(ConfigError, match=f'head.closed-form = "every-round".*{reason}'):
        head_scheme(closed_form="every-round").check(run)


def test_a_personal_copy_is_refused() -> None:
    scheme = make_scheme(make_config(**{"scheme": "pflmoe", "head.closed-form": "before"}))
    with pytest.raises(ConfigError, match="personal copy"):
        Plan.of(scheme, SHAPE)


# -- whole runs --------------------------------------------------------------------------------


def estimated_when(when: str, **more: Any) -> GoldenRun:
    keys = {"head.closed-form": when, "train.learning-rate": 1e-2, "keep-checkpoints": 9}
    return GoldenRun(keys | more)


def head_after(results: Path, server_round: int) -> Tensor:
    (folder,) = (results / "checkpoints").glob(f"round-*{server_round}")
    return load_file(folder / "state.safetensors")["score.weight"]


def test_before_the_run_and_fixed(runs: SharedRuns) -> None:
    results = runs.of(estimated_when("before"))
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 4
    first = head_after(results, 0)
    assert torch.equal(first, head_after(results, 3))
    plain = runs.of(estimated_when("none"))
    assert not torch.equal(first, head_after(plain, 0))
    trained = runs.of(estimated_when("before", **{"head.fixed": False}))
    assert not torch.equal(first, head_after(trained, 3))
    # The exported model is a plain one, with that head.
    model = AutoModelForSequenceClassification.from_pretrained(results / "model")
    assert torch.equal(model.score.weight, first)


def test_a_resumed_run_does_not_estimate_again(runs: SharedRuns) -> None:
    run = estimated_when("every-round")
    whole, resumed = runs.of(run), runs.resumed(run, after=2)
    assert torch.equal(head_after(whole, 3), head_after(resumed, 3))


def test_every_round_it_follows_the_features(runs: SharedRuns) -> None:
    """Where they hardly move, it comes out the same every time."""
    moving = runs.of(estimated_when("every-round"))
    assert not torch.allclose(head_after(moving, 2), head_after(moving, 3), atol=1e-3)
    still = runs.of(estimated_when("every-round", **{"train.learning-rate": 1e-9}))
    torch.testing.assert_close(head_after(still, 0), head_after(still, 3), rtol=1e-3, atol=1e-4)


def test_after_the_run_the_head_is_replaced_and_scored(runs: SharedRuns) -> None:
    after, plain = runs.of(estimated_when("after")), runs.of(estimated_when("none"))
    assert not torch.equal(head_after(after, 3), head_after(plain, 3))
    lines, others = read_metrics(after), read_metrics(plain)
    assert [line["loss"] for line in lines[:3]] == [line["loss"] for line in others[:3]]
    assert lines[3]["loss"] != others[3]["loss"]
