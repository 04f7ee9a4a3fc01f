"""An example under a head that has not learnt it: the same as without it, told and remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmoe_app import ConfigError, LocalStep, Now, Plan, RoundInfo, read_metrics
from fedmoe_app.schemes.closedhead import (
    EstimateHead,
    FeatureSums,
    Head,
    Sums,
    lda_head,
    ridge_head,
)
from fedmoe_app.schemes.leaveoneout import (
    HEAD,
    HeldBack,
    LeaveOneOut,
    TellHead,
    whole,
    without_one,
)
from tests.conftest import make_config
from tests.invariant.runs import GoldenRun, run_golden
from tests.schemes.conftest import SharedRuns
from tests.schemes.test_closed_head import EXAMPLE, SHAPE, SUMS, head_scheme, sent, sums

HEADS = {"lda": lda_head, "ridge": ridge_head}


def drawn(examples: int = 40, dims: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Features, and labels of all classes but the last."""
    generator = torch.Generator().manual_seed(17)
    f = torch.randn(examples, dims, generator=generator, dtype=torch.float64) * 2 + 0.7
    labels = torch.arange(examples) % (classes - 1)
    return f + 0.8 * labels[:, None].double(), labels


def logits_of(head: Head, features: Tensor) -> Tensor:
    logits = features @ head.weight.T
    return logits if head.bias is None else logits + head.bias


# -- exact -------------------------------------------------------------------------------------


def test_lda_without_one_example_by_hand() -> None:
    """Without (3, 0) class 0 is (1, 0) alone: its mean, and the scatter is 2 on the second axis.

    n − C = 1, γ = ½: Σ̂ = ½·diag(0, 2) + ½·(2/2)·I = diag(½, 3/2), so Σ̂⁻¹ = diag(2, 2/3). Means
    (1, 0) and (0, 2): W = (2, 0) and (0, 4/3), b = −½·2 and −½·8/3. Of x = (1, 1) the logits are
    2 − 1 and 4/3 − 4/3; what both share is taken off, as the head does.
    """
    known = whole(sums(*EXAMPLE), "lda", True, 1.0)
    taken, x = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    found = without_one(known, "lda", 0.5, True, taken, torch.tensor([0]), x)
    assert found.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_ridge_without_one_example_by_hand() -> None:
    """Without (3, 0): S = diag(1, 10), λ = ½·11/2, s = (1, 0) and (0, 4)."""
    known = whole(sums(*EXAMPLE), "ridge", False, 1.0)
    taken, x = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    found = without_one(known, "ridge", 0.5, False, taken, torch.tensor([0]), x)
    assert found.flatten().tolist() == pytest.approx([1 / 3.75, 4 / 12.75])


@pytest.mark.parametrize("method", HEADS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 1.0])
def test_it_is_the_head_of_the_sums_without_the_example(
    method: str, has_bias: bool, shrinkage: float
) -> None:
    """Whatever the features are by now: those in the sums are taken out."""
    f, labels = drawn()
    now = f + 0.1 * f.flip(0)
    known = whole(sums(f.tolist(), labels.tolist(), classes=5), method, has_bias, 0.7)
    found = without_one(known, method, shrinkage, has_bias, f, labels, now)
    for i in range(len(f)):
        rest = [j for j in range(len(f)) if j != i]
        others = sums(f[rest].tolist(), labels[rest].tolist(), classes=5)
        anew = HEADS[method](others, shrinkage, has_bias)
        expected = 0.7 * logits_of(anew, now[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def test_examples_without_any_scatter() -> None:
    """All of a class alike: no scatter is left, and the head is that of the nearest mean."""
    alike = ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1, 1])
    f, labels = torch.tensor(alike[0]), torch.tensor(alike[1])
    found = without_one(whole(sums(*alike), "lda", True, 1.0), "lda", 0.1, True, f, labels, f)
    expected = logits_of(lda_head(sums(*alike), 0.1, True), f.double())
    torch.testing.assert_close(found, expected)


def test_the_gradient_is_that_of_the_head_without_the_example() -> None:
    f, labels = drawn()
    x = f.clone().requires_grad_(True)
    known = whole(sums(f.tolist(), labels.tolist(), classes=5), "lda", False, 1.0)
    without_one(known, "lda", 0.1, False, f, labels, x)[3, 1].backward()  # type: ignore[no-untyped-call]
    others = sums(f[torch.arange(len(f)) != 3].tolist(), [*labels[:3], *labels[4:]], classes=5)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[3], lda_head(others, 0.1, False).weight[1])
    assert not x.grad[:3].any() and not x.grad[4:].any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_an_example_that_counts_for_less_is_taken_out_by_as_much(
    method: str, has_bias: bool
) -> None:
    """A client's sums are in by a fifth, as the guard has them; without a fifth of one example."""
    f, labels = drawn()
    all_of_it = sums(f.tolist(), labels.tolist(), classes=5)
    one = sums(f[3:4].tolist(), labels[3:4].tolist(), classes=5)
    fifth = Sums(*(0.2 * each for each in all_of_it))
    others = Sums(*(0.2 * (each - own) for each, own in zip(all_of_it, one, strict=True)))
    known = whole(fifth, method, has_bias, 1.0)
    found = without_one(*(known, method, 0.1, has_bias, f[3:4], labels[3:4], f[3:4]), weight=0.2)
    expected = logits_of(HEADS[method](others, 0.1, has_bias), f[3:4])
    torch.testing.assert_close(found, expected)


# -- the parts ---------------------------------------------------------------------------------


def told(f: Tensor, labels: Tensor, after: int = 0) -> tuple[dict[Any, Any], Tensor]:
    """What the server tells, and the head that it has put in place."""
    step = TellHead(SUMS, "lda", 0.1, 2.0)
    parts = (sent(f[::2], labels[::2], 5), sent(f[1::2], labels[1::2], 5))
    info = RoundInfo(after, torch.ones(2), torch.ones(2), (), parts)
    now = Now({"score.weight": torch.zeros(5, f.shape[1])}, {}, info)
    change, _ = step.step(now, {})
    assert change["score.weight"].equal(EstimateHead(SUMS).step(now, {})[0]["score.weight"])
    return step.tell(now, {}), change["score.weight"]


def seen(f: Tensor, labels: Tensor, weight: Tensor, **others: Any) -> LocalStep:
    features = f.float().requires_grad_(True)
    return LocalStep(
        {},
        {"score.weight": weight},
        logits=features @ weight.T,
        labels=labels,
        features=features,
        **others,
    )


def test_who_has_more_than_counts_takes_out_a_part_of_an_example() -> None:
    """Of twelve, four and four examples eight count at most: v = 2/3 for the first client."""
    f, labels = drawn(20)
    parts = [
        sent(f[:12], labels[:12], 5),
        *(sent(f[i : i + 4], labels[i : i + 4], 5) for i in (12, 16)),
    ]
    parts[0] = {name: tensor * (8 / 12) for name, tensor in parts[0].items()}
    info = RoundInfo(0, torch.ones(3), torch.ones(3), (), tuple(parts), is_bounded=True)
    now = Now({"score.weight": torch.zeros(5, f.shape[1])}, {}, info)
    step = TellHead(SUMS, "lda", 0.1, 2.0)
    signals, weight = step.tell(now, {}), step.step(now, {})[0]["score.weight"]
    assert float(signals[HEAD]["most-examples"]) == pytest.approx(8)
    scale = float(signals[HEAD]["scale"])
    for own, v in ((slice(0, 12), 8 / 12), (slice(12, 16), 1.0)):
        counts = torch.bincount(labels[own], minlength=5).float()
        kept: dict[str, Any] = {"recalled": f[own].float(), "recalled_round": 0}
        there = seen(f[own], labels[own], weight, told=signals, label_counts=counts, **kept)
        found = LeaveOneOut("score").logits(there)
        one = sums(f[own][:1].tolist(), labels[own][:1].tolist(), classes=5)
        totals = SUMS._total(now)
        without = Sums(*(each - v * its for each, its in zip(totals, one, strict=True)))
        expected = scale * logits_of(lda_head(without, 0.1, False), f[own][:1])
        torch.testing.assert_close(found[:1].double(), expected, rtol=1e-3, atol=1e-3)


def test_a_client_meets_a_less_certain_head() -> None:
    """On the whole the right class is less likely, and the logits are those without the example."""
    f, labels = drawn()
    signals, weight = told(f, labels)
    step = seen(f, labels, weight, told=signals, recalled=f.float(), recalled_round=0)
    found = LeaveOneOut("score").logits(step)
    assert cross_entropy(found, labels) > cross_entropy(step.logits, labels)
    scale = float(signals[HEAD]["scale"])
    first = lda_head(sums(f[1:].tolist(), labels[1:].tolist(), classes=5), 0.1, False)
    expected = scale * logits_of(first, f[:1])
    torch.testing.assert_close(found[:1].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "others",
    [
        {"recalled_round": -1},  # lost
        {"recalled_round": 1},  # of other sums than those that are told of
        {"told": {}, "recalled_round": 0},  # nothing was ever told
    ],
)
def test_what_cannot_be_taken_out_meets_the_head_as_it_is(others: dict[str, Any]) -> None:
    f, labels = drawn()
    signals, weight = told(f, labels)
    step = seen(f, labels, weight, **{"told": signals, "recalled": f.float(), **others})
    assert LeaveOneOut("score").logits(step) is step.logits


def test_the_only_example_of_its_class_meets_the_head_as_it_is() -> None:
    f, labels = drawn()
    labels[0] = 4  # of which there is no other
    signals, weight = told(f, labels)
    step = seen(f, labels, weight, told=signals, recalled=f.float(), recalled_round=0)
    found = LeaveOneOut("score").logits(step)
    assert found[0].equal(step.logits[0])
    assert not found[1].equal(step.logits[1])


def test_a_share_of_each_class_is_held_back() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    mask = HeldBack(0.4).trained(labels, seed=3)
    assert [int(mask[labels == c].sum()) for c in range(3)] == [4, 2, 0]
    assert mask.equal(HeldBack(0.4).trained(labels, seed=3))
    assert not mask.equal(HeldBack(0.4).trained(labels, seed=4))
    assert HeldBack(0.4).trained(torch.tensor([0, 1, 2]), 3).sum() == 1  # one is trained on
    assert HeldBack(0.4).trained(torch.tensor([7]), 3).tolist() == [True]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"closed_form": "before", "leave_one_out": True, "held_back": 0.5}, "choose one"),
        ({"leave_one_out": True}, 'closed-form = "none": no head of sums'),
        ({"closed_form": "after", "held_back": 0.5}, 'closed-form = "after": no head of sums'),
        ({"closed_form": "before", "leave_one_out": True, "fixed": False}, "fixed = true, or held"),
        ({"closed_form": "before", "held_back": 1.0}, "less than 1"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        head_scheme(**keys)


def test_what_is_built_of_the_keys() -> None:
    left_out = Plan.of(head_scheme(closed_form="every-round", leave_one_out=True), SHAPE)
    assert left_out.client.logits == LeaveOneOut("score")
    assert left_out.recalls and left_out.needs_features and left_out.needs_outputs
    assert left_out.told_apart == {"closed-form-head"}
    assert left_out.server.refresh == (TellHead(FeatureSums("score")),)
    back = Plan.of(head_scheme(closed_form="before", held_back=0.5), SHAPE)
    assert back.client.split == HeldBack(0.5)
    assert not back.recalls and not back.needs_outputs


# -- whole runs --------------------------------------------------------------------------------


def estimated_when(when: str, *settings: dict[str, Any]) -> GoldenRun:
    config = {"head.closed-form": when, "train.learning-rate": 1e-2, "keep-client-state": True}
    for more in settings:
        config |= more
    return GoldenRun(config)


LEFT_OUT = {"head.leave-one-out": True}


def state(results: Path, server_round: int, name: str = "state") -> dict[str, Tensor]:
    return load_file(results / "checkpoints" / f"round-{server_round:05d}" / f"{name}.safetensors")


@pytest.mark.parametrize("when", ["before", "every-round"])
def test_clients_train_against_a_head_without_their_examples(when: str, runs: SharedRuns) -> None:
    """It resumes bit for bit."""
    run = estimated_when(when, LEFT_OUT)
    left_out, resumed = runs.of(run), runs.resumed(run, after=2)
    assert [line["status"] for line in read_metrics(left_out)] == ["ok"] * 4
    kept = sorted(runs.home_of(run).glob("clients/*/client-*/measured/*"))
    last = [0, 0, 0] if when == "before" else [2, 3] * 3
    assert [path.name for path in kept] == [f"round-{n}.safetensors" for n in last]
    for name in ("state", "broadcast"):
        mine, other = state(left_out, 3, name), state(resumed, 3, name)
        assert mine.keys() == other.keys()
        assert all(mine[key].equal(other[key]) for key in mine), name
    assert state(left_out, 3, "broadcast")["closed-form-head/round"] == (
        0 if when == "before" else 3
    )


def test_the_loss_is_higher_than_under_the_head_that_has_learnt_them(runs: SharedRuns) -> None:
    """Of all examples, which hardly move the model."""
    one_epoch = {"num-server-rounds": 1, "train.max-steps": 0, "train.learning-rate": 1e-9}
    left_out = runs.of(estimated_when("before", LEFT_OUT, one_epoch))
    plain = runs.of(estimated_when("before", one_epoch))
    mine, other = (
        sum(c["train_loss"] * c["num_examples"] for c in read_metrics(found)[1]["clients"])
        for found in (left_out, plain)
    )
    assert mine > other


def test_a_lost_file_costs_the_round_nothing(
    runs: SharedRuns, material: Path, tmp_path: Path
) -> None:
    """Without what it remembers a client trains as without leave-one-out."""
    one_round = {"num-server-rounds": 1}
    run = estimated_when("before", LEFT_OUT, one_round, {"wire.downloads": "full"})
    (tmp_path / "run" / "home").mkdir(parents=True)
    (tmp_path / "run" / "home" / "clients").write_text("in the way of all that clients keep")
    found = run_golden(run, material, tmp_path / "run")
    plain = runs.of(estimated_when("before", one_round))
    mine, other = read_metrics(found)[1], read_metrics(plain)[1]
    assert mine["status"] == "ok"
    assert [c["train_loss"] for c in mine["clients"]] == pytest.approx(
        [c["train_loss"] for c in other["clients"]]
    )


def test_what_is_held_back_is_trained_on_and_not_summed(runs: SharedRuns) -> None:
    """Half of the examples are half of the steps; they weigh as all of them."""
    epoch = {"train.max-steps": 0}
    plain = read_metrics(runs.of(estimated_when("before", epoch)))
    run = estimated_when("before", epoch, {"head.held-back": 0.5})
    results, resumed = runs.of(run), runs.resumed(run, after=2)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 4
    assert lines[0]["loss"] != plain[0]["loss"]  # the head is of other sums
    for one, other in zip(lines[1]["clients"], plain[1]["clients"], strict=True):
        assert one["num_examples"] == other["num_examples"]
        if one["num_examples"] > 8:  # 4 a step
            assert one["num_steps"] <= other["num_steps"] // 2 + 1
    assert not list(runs.home_of(run).glob("clients/*/*/measured"))
    first, again = state(results, 3), state(resumed, 3)
    assert all(first[key].equal(again[key]) for key in first)


def test_a_pair_of_keys_is_told_in_the_config() -> None:
    with pytest.raises(ConfigError, match="head: leave-one-out = true with held-back"):
        make_config(
            **{
                "head.closed-form": "before",
                "head.leave-one-out": True,
                "head.held-back": 0.2,
            }
        )
