"""The exchange without training: whose sums are used, what is refused, how the model moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedmoe_app import ModelState, Now, Step
from fedmoe_app.aggregation.guard import STRENGTHS, Guard, Strength
from fedmoe_app.compare.in_process import task_identity
from fedmoe_app.schemes.closedhead import FeatureSums
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.views import Kept, Limits
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.measuring import Answers, bounded, decode_measured, info_of, moved, specs_of
from fedmoe_app.wire.numbers import encode_number
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.statistics import RECORD, encode_statistics

QUESTION = Question(0, "0" * 32, 0)
STATE = ModelState(dense={"score.weight": torch.zeros(2, 3), "w": torch.ones(2)})
SPECS = specs_of([FeatureSums("score")], STATE)
GOOD = {
    "FeatureSums/counts": torch.tensor([3.0, 1.0]),
    "FeatureSums/features": torch.ones(2, 3),
    "FeatureSums/moment": torch.ones(6),
}


def message(client: int, node: int, **numbers: Tensor) -> Message:
    """A node's reply, as the server gets it."""
    content = encode_number(client, QUESTION)
    sums = GOOD | {f"FeatureSums/{name}": tensor for name, tensor in numbers.items()}
    content[RECORD] = encode_statistics(sums)
    return Message(content, reply_to=Message(RecordDict(), node, "query.measure"))


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    with task_identity():
        yield


def decoded(*replies: Message) -> Answers:
    return decode_measured(replies, ClientRegistry(seed=0), QUESTION, SPECS)


def test_sums_come_in_client_order() -> None:
    answers = decoded(message(7, 1), message(2, 2))
    assert list(answers.by_client) == [2, 7]
    assert answers.rejected == {}
    assert torch.equal(answers.by_client[2]["FeatureSums/features"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"counts": torch.tensor([-1.0, 1.0])}, "outside 0 to 1e\\+08"),
        ({"moment": torch.tensor([1.0, torch.nan] * 3)}, "outside"),
        ({"moment": torch.ones(9)}, "36 bytes, at most 24"),
        ({"median": torch.ones(1)}, "nobody asked for it"),
    ],
)
def test_what_cannot_be_is_refused_and_the_others_are_used(
    numbers: Mapping[str, Tensor], reason: str
) -> None:
    answers = decoded(message(0, 1), message(1, 2, **numbers))
    assert list(answers.by_client) == [0]
    ((who, why),) = answers.rejected.items()
    assert who == "node 2"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why)


def test_two_nodes_that_claim_one_client_give_nothing() -> None:
    assert decoded(message(0, 1), message(0, 2), message(1, 3)).by_client.keys() == {1}


class Counts(Step):
    """Adds the number of examples to w."""

    def step(
        self, now: Now, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        total = sum(float(sent["FeatureSums/counts"].sum()) for sent in now.info.statistics)
        return {**now.change, "w": now.change.get("w", 0) + torch.full((2,), total)}, {}


def test_steps_follow_each_other_and_what_none_moved_stays_the_same_object() -> None:
    state = moved(STATE, (Counts(), Counts()), info_of(0, [GOOD, GOOD]))
    assert state.dense["w"].tolist() == [17.0, 17.0]
    assert state.dense["score.weight"] is STATE.dense["score.weight"]


class Divides(Step):
    """Divides by zero."""

    def step(
        self, now: Now, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"w": torch.full((2,), torch.inf)}, {}


def test_a_step_that_gives_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="w: NaN or infinite"):
        moved(STATE, (Divides(),), info_of(0, [GOOD]))


# Two examples of class 0, f = (1, 2, 0) and (3, 0, 1), and one of class 1, f = (0, 1, 1).
FEATURES = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
REAL = {
    "counts": torch.tensor([2.0, 1.0]),
    "features": torch.tensor([[4.0, 2.0, 1.0], [0.0, 1.0, 1.0]]),
    "moment": (FEATURES.T @ FEATURES)[tuple(torch.triu_indices(3, 3))],
}


def checked(**numbers: Tensor) -> Answers:
    reply = message(0, 1, **(REAL | numbers))
    head = [FeatureSums("score")]
    return decode_measured([reply], ClientRegistry(seed=0), QUESTION, SPECS, head)


# -- the guard ---------------------------------------------------------------------------------


def guarded(*counts: float, known: Mapping[int, int] | None = None) -> Answers:
    """Answers of clients 3, 4, ... with so many times (1, 0, 0) of class 0, under the guard."""
    answers = decoded(
        *(
            message(
                3 + i,
                1 + i,
                counts=torch.tensor([n, 0.0]),
                features=torch.tensor([[n, 0.0, 0.0], [0.0, 0.0, 0.0]]),
                moment=torch.tensor([n, 0.0, 0.0, 0.0, 0.0, 0.0]),
            )
            for i, n in enumerate(counts)
        )
    )
    guard = Guard(Strength(slack=2, share=2))
    guard.known = {client: (float(n), 0.0, 0.0, 0.0, 0.0) for client, n in (known or {}).items()}
    return bounded(answers, [FeatureSums("score")], guard)


def counted(answers: Answers) -> dict[int, float]:
    return {client: float(s["FeatureSums/counts"].sum()) for client, s in answers.by_client.items()}


def test_no_client_has_more_than_two_medians_in_the_sums() -> None:
    answers = guarded(10, 10, 10, 1e5)
    assert answers.factors == {3: 1.0, 4: 1.0, 5: 1.0, 6: pytest.approx(2e-4)}
    assert answers.is_bounded
    assert counted(answers) == {3: 10, 4: 10, 5: 10, 6: pytest.approx(20)}


def test_no_client_has_more_in_the_sums_than_it_said_to_train_on() -> None:
    assert counted(guarded(10, 10, 10, 20, known={6: 12, 9: 1})) == {3: 10, 4: 10, 5: 10, 6: 12}


def test_sums_within_the_bounds_are_the_same_objects() -> None:
    answers = decoded(*(message(i, 1 + i, **REAL) for i in range(3)))
    found = bounded(answers, [FeatureSums("score")], Guard(STRENGTHS["tight"]))
    assert found.factors == {0: 1.0, 1: 1.0, 2: 1.0}
    assert not found.is_bounded
    assert all(found.by_client[i] is answers.by_client[i] for i in range(3))


def test_without_a_guard_all_stays_as_it_came() -> None:
    answers = decoded(message(0, 1), message(1, 2))
    assert bounded(answers, [FeatureSums("score")], None) is answers


class Loses(FeatureSums):
    """Returns sums of fewer clients than there are."""

    def bounded(self, sent: Sequence[Mapping[str, Tensor]], limits: Limits) -> Sequence[Kept]:
        return [Kept(numbers) for numbers in sent[1:]]


def test_a_statistic_that_loses_a_client_is_told() -> None:
    answers = decoded(message(0, 1), message(1, 2))
    with pytest.raises(PartError, match=r"Loses\.bounded: must return one Kept a client, 2"):
        bounded(answers, [Loses("score")], Guard(STRENGTHS["default"]))


# -- what examples give ------------------------------------------------------------------------


def test_sums_of_examples_are_possible() -> None:
    assert checked().rejected == {}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in REAL.items()}
    assert checked(**nothing).rejected == {}


def test_sums_of_equal_examples_are_on_the_bound_and_possible() -> None:
    """Σ ‖s_c‖²/n_c = tr(S) where all examples of a class are one: 1e6 of (0.1, 0.2, 0.3)."""
    f, n = torch.tensor([0.1, 0.2, 0.3]), 1e6
    numbers = {
        "counts": torch.tensor([n, 0.0]),
        "features": torch.stack([n * f, torch.zeros(3)]),
        "moment": (n * torch.outer(f, f))[tuple(torch.triu_indices(3, 3))],
    }
    assert checked(**numbers).rejected == {}


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"counts": torch.tensor([0.0, 1.0])}, "features of a class without examples"),
        ({"counts": torch.tensor([2.5, 1.0])}, "counts are no whole numbers"),
        ({"features": 10 * REAL["features"]}, "features larger than their squares"),
        ({"moment": torch.zeros(6)}, "features larger than their squares"),
        ({"moment": -REAL["moment"]}, "features larger than their squares"),
        (
            {"moment": REAL["moment"] + torch.tensor([0.0, 1e6, 0.0, 0.0, 0.0, 0.0])},
            "products of features larger than their squares",
        ),
    ],
)
def test_sums_that_no_examples_give_are_rejected(numbers: dict[str, Tensor], why: str) -> None:
    (reason,) = checked(**numbers).rejected.values()
    assert reason.endswith(f"statistics.FeatureSums: {why}")
