"""Losses against label skew: by hand, switched off, combined, and refused without classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import ConfigError, LocalStep, ModelShape, Run, Scheme, make_scheme, read_metrics
from fedmoe_app.config.names import LABEL_SKEW
from fedmoe_app.schemes.distil import masked_kl
from fedmoe_app.schemes.feddecorr import Decorrelate, FedDecorr
from fedmoe_app.schemes.fedlmd import FedLMD, LabelMasking
from fedmoe_app.schemes.fedntd import FedNTD, NotTrue
from fedmoe_app.schemes.fedrs import FedRS, RestrictedSoftmax
from fedmoe_app.schemes.fedvls import FedVLS, PriorAdded, Suppression, VacantClasses
from fedmoe_app.schemes.logitadjust import Calibrated, FedLC, LogitAdjust, PriorAdjusted
from fedmoe_app.schemes.parts import Client
from tests.conftest import make_config
from tests.invariant.runs import SHORT, GoldenRun
from tests.schemes.conftest import SharedRuns

SHAPE = ModelShape(1, 2, 1)
LOG2, LOG3 = math.log(2), math.log(3)


def step(
    logits: list[list[float]],
    labels: list[int],
    counts: list[float],
    teacher: list[list[float]] | None = None,
    features: list[list[float]] | None = None,
) -> LocalStep:
    empty: list[list[float]] = []
    return LocalStep(
        {},
        {},
        logits=torch.tensor(logits, requires_grad=True),
        labels=torch.tensor(labels),
        label_counts=torch.tensor(counts),
        teacher=torch.tensor(teacher or empty),
        features=torch.tensor(features or empty),
    )


def close(found: Tensor | None, expected: float) -> None:
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# -- worked out by hand ------------------------------------------------------------------------


def test_logit_adjustment_is_the_cross_entropy_with_the_prior() -> None:
    """Logits 0, so that only p̃ = (2+1)/6, (1+1)/6, (0+1)/6 counts: −log p̃(y)."""
    of_class_0 = step([[0.0, 0.0, 0.0]], [0], [2.0, 1.0, 0.0])
    close(PriorAdjusted(1.0, 1.0).loss(of_class_0), LOG2)
    close(PriorAdjusted(1.0, 1.0).loss(step([[0.0] * 3], [2], [2.0, 1.0, 0.0])), math.log(6))
    # τ = 2: weights 9, 4, 1 of 14.
    close(PriorAdjusted(2.0, 1.0).loss(of_class_0), math.log(14 / 9))


def test_without_smoothing_an_absent_class_leaves_the_softmax() -> None:
    here = step([[0.0, 0.0, 50.0]], [0], [1.0, 1.0, 0.0])
    loss = PriorAdjusted(1.0, 0.0).loss(here)
    close(loss, LOG2)
    loss.backward()
    assert here.logits.grad is not None
    assert here.logits.grad[0].tolist() == [-0.5, 0.5, 0.0]


def test_adjusted_by_its_prior_a_client_of_untrained_logits_pushes_no_class() -> None:
    """At z = 0 the residuals of a client's examples add up to 0, whatever its labels."""
    here = step([[0.0] * 3] * 4, [0, 0, 0, 1], [3.0, 1.0, 0.0])
    PriorAdjusted(1.0, 0.0).loss(here).backward()
    assert here.logits.grad is not None
    assert here.logits.grad.sum(0).tolist() == pytest.approx([0.0] * 3, abs=1e-7)


def test_fedlc_by_hand_in_both_forms() -> None:
    """n = 16 and 1: offsets −τ/2 and −τ; with τ = 2, −1 and −2."""
    here = step([[0.0, 0.0]], [0], [16.0, 1.0])
    close(Calibrated(2.0).loss(here), math.log(1 + math.exp(-1)))
    close(Calibrated(2.0, "paper").loss(here), -1.0)  # log e^−2 − log e^−1
    absent = step([[0.0, 0.0, 9.0]], [0], [16.0, 16.0, 0.0])
    close(Calibrated(1.0).loss(absent), LOG2)


def test_fedrs_by_hand_in_both_forms() -> None:
    """α = ½: z = (0, 2 log 3) becomes (0, log 3) for the absent class."""
    here = step([[0.0, 2 * LOG3]], [0], [4.0, 0.0])
    close(RestrictedSoftmax(0.5).loss(here), math.log(4))
    # n = 4, 2 in the code's form: a = 1, ¾.
    graded = step([[0.0, 4 * LOG3]], [0], [4.0, 2.0])
    close(RestrictedSoftmax(0.5, "code").loss(graded), math.log(1 + 27))
    close(RestrictedSoftmax(0.5).loss(graded), math.log(1 + 81))


def test_not_true_distillation_leaves_the_right_class_out() -> None:
    """Teacher ½, ½ over classes 1 and 2, logits ¾, ¼: ½·log(½/¾) + ½·log(½/¼)."""
    here = step([[7.0, LOG3, 0.0]], [0], [1.0] * 3, teacher=[[-5.0, 0.0, 0.0]])
    expected = 0.5 * math.log(2 / 3) + 0.5 * LOG2
    close(NotTrue(1.0, 1.0).loss(here), expected)
    hot = step([[7.0, 3 * LOG3, 0.0]], [0], [1.0] * 3, teacher=[[-5.0, 0.0, 0.0]])
    close(NotTrue(0.5, 3.0).loss(hot), 0.5 * 9 * expected)  # β·T²


def test_label_masking_takes_the_majority_out_of_the_teacher() -> None:
    """Counts 6, 2, 1 of mean 3: class 0 is the majority. Teacher over {1}: log softmax of it."""
    here = step([[0.0, 0.0, 0.0]], [2], [6.0, 2.0, 1.0], teacher=[[9.0, 1.0, 5.0]])
    close(LabelMasking().loss(here), LOG2)  # −log ½ over the classes that are not right


def test_an_example_whose_teacher_has_no_class_left_adds_nothing() -> None:
    here = step([[1.0, 2.0], [0.0, 0.0]], [1, 1], [9.0, 1.0], teacher=[[1.0, 5.0], [1.0, 1.0]])
    loss = LabelMasking().loss(here)
    close(loss, 0.0)
    assert loss is not None
    loss.backward()
    assert here.logits.grad is not None
    assert here.logits.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_vacant_classes_only_are_distilled() -> None:
    teacher = [[9.0, 0.0, 0.0]]
    here = step([[0.0, LOG3, 0.0]], [0], [4.0, 0.0, 0.0], teacher=teacher)
    close(VacantClasses(0.1).loss(here), 0.1 * (0.5 * math.log(2 / 3) + 0.5 * LOG2))
    assert VacantClasses(0.1).loss(step([[0.0] * 3], [0], [1.0] * 3, teacher=teacher)) is None


def test_suppression_in_the_papers_form() -> None:
    """p = ¾, ¼: class 0 is wrong for one of two examples (e^log 3 / 2), class 1 for the other."""
    here = step([[5.0, LOG2, 8.0], [LOG3, 5.0, 8.0]], [0, 1], [3.0, 1.0, 0.0])
    expected = 0.75 * math.log(3 / 2) + 0.25 * math.log(2 / 2)
    close(Suppression(2.0, "paper").loss(here), 2 * expected)
    alone = step([[5.0, 1.0]], [0], [1.0, 0.0])  # nothing wrong of a class that it has
    assert Suppression(2.0, "paper").loss(alone) is None


def test_suppression_in_the_codes_form() -> None:
    """C·p = 1.5, 0.5; right labels count e^0: class 0 (1 + 3/1.5)/2, class 1 (1 + 2/0.5)/2."""
    here = step([[5.0, LOG2], [LOG3, 5.0]], [0, 1], [3.0, 1.0])
    close(Suppression(1.0).loss(here), 0.75 * math.log(1.5) + 0.25 * math.log(2.5))
    close(PriorAdded().loss(step([[0.0, 0.0]], [1], [3.0, 1.0])), math.log(4))


def test_decorrelation_by_hand_in_both_forms() -> None:
    """Two equal dimensions: K is all ones, or with the B − 1 of the code all ½ (B = 2)."""
    here = step([[0.0]], [0], [1.0], features=[[1.0, 2.0], [3.0, 6.0]])
    close(Decorrelate(0.1).loss(here), 0.1)
    close(Decorrelate(0.1, "code").loss(here), 0.1 * 2 * 0.25)
    uncorrelated = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    apart = step([[0.0]], [0], [1.0], features=uncorrelated)
    close(Decorrelate(0.1).loss(apart), 0.1 * 0.5)  # the diagonal
    close(Decorrelate(0.1, "code").loss(apart), 0.0)
    assert Decorrelate().loss(step([[0.0]], [0], [1.0], features=[[1.0, 2.0]])) is None


def test_a_teacher_that_agrees_costs_nothing_and_pulls_nowhere() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    kept = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    kept[:, 0] = True
    loss = masked_kl(logits.detach(), logits, kept, kept, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == pytest.approx(0.0, abs=1e-6)


# -- identities --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    [
        LogitAdjust(tau=0.0),
        FedLC(tau=0.0),
        FedRS(alpha=1.0),
        FedNTD(beta=0.0),
        FedLMD(beta=0.0),
        FedVLS(lam=0.0, kappa=0.0, form="paper"),
        FedDecorr(beta=0.0),
    ],
)
def test_switched_off_it_is_fedavg(scheme: Scheme) -> None:
    assert scheme.client(SHAPE) == Client()


@pytest.mark.parametrize("part", [PriorAdjusted(), Calibrated(), RestrictedSoftmax()])
def test_equal_label_counts_leave_loss_and_gradient_as_they_are_bit_for_bit(part: Any) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).tolist()
    labels = [0, 1, 2, 3, 0, 1]
    mine, plain = step(logits, labels, [5.0] * 4), step(logits, labels, [5.0] * 4)
    loss = part.loss(mine)
    expected = torch.nn.functional.cross_entropy(plain.logits, plain.labels)
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item()
    assert mine.logits.grad is not None and plain.logits.grad is not None
    assert torch.equal(mine.logits.grad, plain.logits.grad)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABEL_SKEW)
@pytest.mark.parametrize("task", ["causal-lm", "multiple-choice"])
def test_a_task_without_shared_classes_is_refused_with_the_reason(name: str, task: str) -> None:
    scheme, run = make_scheme(make_config(scheme=name)), Run(SHAPE, task=task)
    if (name, task) == ("logitadjust", "causal-lm"):
        assert scheme.check(run) == ()
        return
    reason = "vocabulary" if task == "causal-lm" else "options are answers to one question"
    with pytest.raises(ConfigError, match=f'"{name}".*{task}.*{reason}'):
        scheme.check(run)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("logitadjust", '{"tau": -1}', "logitadjust: tau = -1"),
        ("fedlc", '{"form": "book"}', 'fedlc: form = "book": choose "paper" or "code"'),
        ("fedrs", '{"alpha": 2}', "fedrs: alpha = 2: choose 0 to 1"),
        ("fedntd", '{"temperature": 0}', "fedntd: temperature = 0"),
        ("fedvls", '{"lamda": 1}', "lamda"),
    ],
)
def test_a_wrong_argument_is_refused(name: str, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheme(make_config(**{"scheme": name, "scheme-args": arguments}))


# -- combined ----------------------------------------------------------------------------------


def combined(**others: Any) -> Scheme:
    return make_scheme(make_config(scheme="combine", **others))


def test_a_combination_takes_the_loss_with_its_arguments() -> None:
    scheme = combined(
        **{
            "combine.loss": "fedvls",
            "combine.experts": "fcmoe",
            "scheme-args": '{"fedvls": {"lam": 0.3}}',
        }
    )
    assert scheme.client(SHAPE).loss == PriorAdded()
    assert VacantClasses(0.3) in scheme.client(SHAPE).terms
    with pytest.raises(ConfigError, match="options are answers"):
        scheme.check(Run(SHAPE, task="multiple-choice"))


def test_arguments_of_no_part_and_losses_as_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match='"fedntd" is no part'):
        combined(**{"combine.loss": "fedvls", "scheme-args": '{"fedntd": {"beta": 1}}'})
    with pytest.raises(ConfigError, match='combine.experts = "fedvls": choose one of fedavg'):
        combined(**{"combine.experts": "fedvls"})
    with pytest.raises(ConfigError, match='"fedntd" takes a JSON object of its arguments'):
        combined(**{"combine.loss": "fedntd", "scheme-args": '{"fedntd": 3}'})


# -- next tokens -------------------------------------------------------------------------------


def test_next_token_prediction_takes_the_frequencies_of_its_tokens(runs: SharedRuns) -> None:
    config = {"scheme": "logitadjust", "data.task": "causal-lm", "data.partition": "iid"}
    results = runs.of(GoldenRun(config | SHORT, "answers"))
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 3
