"""What a reply answers, what its numbers can be, and how what it holds is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmoe_app.client.train import num_steps, train_batches
from fedmoe_app.data.partitions import split_local
from fedmoe_app.shown.values import shown
from fedmoe_app.wire.bounds import MAX_EXAMPLES, MAX_ITEMS, MAX_STEPS, MAX_TOKENS, TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.metrics import check_metrics
from fedmoe_app.wire.numbers import decode_number, encode_number
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import (
    UpdateSpec,
    decode_update,
    encode_state,
    encode_task,
    encode_update,
    stamp,
)
from tests.conftest import make_config
from tests.toy import toy_state, toy_update

ASKED = Question(3, "ab" * 16, 2)


# -- questions -----------------------------------------------------------------------------------


def test_a_message_names_what_its_reply_repeats() -> None:
    task = encode_task(encode_state(toy_state()), 3, run_key="ab" * 16, state_version=2)
    assert Question.of(task) == ASKED
    update = encode_update(toy_update(0, 1, 1.0, []), question=Question.of(task))
    assert decode_update(update, UpdateSpec.of(toy_state()), ASKED).server_round == 3
    assert Question.of(RecordDict()) == Question()


@pytest.mark.parametrize(
    "other",
    [Question(2, "ab" * 16, 2), Question(3, "cd" * 16, 2), Question(3, "ab" * 16, 1), Question()],
)
def test_an_answer_to_another_message_is_refused(other: Question) -> None:
    update = encode_update(toy_update(0, 1, 1.0, []), question=other)
    with pytest.raises(InvalidUpdateError, match="asked was round 3 of run 'abab") as error:
        decode_update(update, UpdateSpec.of(toy_state()), ASKED)
    assert error.value.kind == "replay"
    decode_update(stamp(update, ASKED), UpdateSpec.of(toy_state()), ASKED)


@pytest.mark.parametrize("entry", [{"round": True}, {"round": 3.0}, {"state": "2"}, {"run": b"ab"}])
def test_equal_is_not_enough(entry: dict[str, Any]) -> None:
    with pytest.raises(InvalidUpdateError):
        ASKED.check(ASKED.answer() | entry)
    with pytest.raises(InvalidUpdateError):
        Question(1, "ab" * 16, 2).check(Question(1, "ab" * 16, 2).answer() | {"round": True})


def test_a_number_comes_alone() -> None:
    assert decode_number(encode_number(5, ASKED), ASKED) == 5
    assert decode_number(encode_number(2**64 - 1, ASKED), ASKED) == 2**64 - 1
    more = encode_number(5, ASKED)
    more["more"] = ConfigRecord({"a": 1})
    with_metric = encode_number(5, ASKED)
    with_metric.metric_records["metrics"]["loss"] = 1.0
    wrong = RecordDict({"metrics": MetricRecord({"client": 5})})
    for content in (more, with_metric, wrong, encode_number(5), encode_number(-1, ASKED)):
        with pytest.raises(InvalidUpdateError):
            decode_number(content, ASKED)


# -- bounds --------------------------------------------------------------------------------------


def train_config(**changes: Any) -> Any:
    return make_config(**{f"train.{key}": value for key, value in changes.items()}).train


@pytest.mark.parametrize("examples", [1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize(
    "changes",
    [
        {"num-train-epochs": 1.0},
        {"num-train-epochs": 2.5},
        {"num-train-epochs": 0.3},
        {"num-train-epochs": 3.0, "max-steps": 2},
        {"num-train-epochs": 1.5, "gradient-accumulation-steps": 2},
    ],
)
def test_no_honest_round_is_beyond_its_bounds(examples: int, changes: dict[str, Any]) -> None:
    config = train_config(**{"per-device-train-batch-size": 4} | changes)
    rows: Any = [{"input_ids": [1], "labels": 0}] * examples
    batches = list(train_batches(rows, config, seed=0))
    bounds = TaskBounds(config, max_length=10)
    assert len(batches) == num_steps(examples, config) == bounds.steps(examples)
    assert sum(map(len, batches)) * 10 <= bounds.tokens(examples)
    # Never more than a step's and an epoch's worth beyond.
    assert bounds.tokens(examples) <= 10 * len(batches) * config.examples_per_step


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_no_honest_hold_out_is_beyond_its_bound(fraction: float) -> None:
    from datasets import Dataset

    bounds = TaskBounds(test_fraction=fraction, items=1)
    for number in (1, 2, 3, 5, 10, 11, 99, 1000):
        train, test = split_local(Dataset.from_dict({"a": range(number)}), fraction, 0)
        held_out = 0 if test is None else len(test)
        assert held_out <= bounds.test_items(len(train))
    assert bounds.test_items(len(train)) <= held_out + 10


def test_a_looped_model_sees_a_token_more_than_once() -> None:
    train = make_config().train
    once, thrice = (TaskBounds(train, max_length=10, passes=passes) for passes in (1, 3))
    assert thrice.tokens(7) == 3 * once.tokens(7)


def test_what_is_not_known_has_only_the_widest_bounds() -> None:
    bounds = TaskBounds()
    assert (bounds.steps(5), bounds.tokens(5)) == (MAX_STEPS, MAX_TOKENS)
    assert (bounds.test_items(5), bounds.examples(3)) == (MAX_ITEMS, MAX_EXAMPLES)
    known = TaskBounds(num_rows=50)
    assert (known.examples(3), known.examples(0)) == (50, MAX_EXAMPLES)


def test_a_histogram_beyond_the_clients_examples_is_refused() -> None:
    """The toy's layers saw 3 tokens, an expert each."""
    reply, spec = encode_update(toy_update(0, 1, 1.0, [(0, 1)])), UpdateSpec.of(toy_state())
    config = train_config(**{"max-steps": 1})
    decode_update(reply, spec, bounds=TaskBounds(config, max_length=3, top_k=1))
    with pytest.raises(InvalidUpdateError, match="routing.tokens = 3: .* have at most 2"):
        decode_update(reply, spec, bounds=TaskBounds(config, max_length=2))
    update = toy_update(0, 1, 1.0, [(0, 1)])
    update.routing.trained[0, 1] = 2
    with pytest.raises(InvalidUpdateError, match="routing.trained = 2: the round has 1 steps"):
        decode_update(encode_update(update), spec, bounds=TaskBounds(config))
    update = toy_update(0, 1, 1.0, [])
    update.routing.count[:] = torch.tensor([2, 2, 2])
    with pytest.raises(InvalidUpdateError, match="more than 1 experts a token"):
        decode_update(encode_update(update), spec, bounds=TaskBounds(top_k=1))


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"accuracy": 1.5}, "accuracy = 1.5: must be 0 to 1"),
        ({"kept-round": 3.0}, "kept-round = 3.0: must be 0 to 2"),
        ({"kept-round": 0.5}, "'kept-round' = 0.5: must be a whole number"),
        ({"num-truncated": 11.0}, "num-truncated = 11.0: must be 0 to 10"),
        ({"seconds-train": -0.1}, "seconds-train = -0.1: must be 0"),
        ({"seconds-lunch": 1.0}, "1 unknown metrics, the first is 'seconds-lunch'"),
        ({"staleness": 1.0}, "unknown metrics"),
        ({"train-loss": float("inf")}, "must be a finite number"),
        ({"train-loss": [1.0]}, "must be a finite number"),
        ({"num-steps": True}, "must be a finite number"),
    ],
)
def test_a_metric_out_of_its_range_is_refused(metrics: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidUpdateError, match=reason) as error:
        check_metrics(metrics, TaskBounds(), 10, 3)
    assert error.value.kind == "metrics"


# -- shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"\x00" * 10**6,
        ["y" * 10**6] * 10**4,
        10.0**300,
        2**64,
        None,
        {"a": 1},
        [[[1]]],
    ],
)
def test_what_is_shown_is_short_and_printable(value: Any) -> None:
    text = shown(value)
    assert 0 < len(text) <= 60
    assert text.isprintable()
