"""What a hostile node answers, by name of the attack.

An honest node of this app adds 1 to every tensor; a lie that was believed would add 1000.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe_app import ClientUpdate, ModelState, RoutingStats
from fedmoe_app.wire.numbers import encode_number
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import TrainTask, encode_score, encode_update, seal
from fedmoe_app.wire.update import ClientScore

EXAMPLES, TESTS = 10, 1  # with data.local-test-fraction = 0.1
LIE = 1000.0


@dataclass(frozen=True)
class Turn:
    """One message to a hostile node: whose number it has, whose it wants, what it was asked."""

    own: int
    victim: int
    task: TrainTask
    memory: Path | None  # a folder of its own, of one that sends replies again


def update(client: int, task: TrainTask, change: float = 1.0) -> ClientUpdate:
    changes = ModelState()
    for key, tensor in task.state.named():
        changes.insert(key, torch.full_like(tensor, change))
    metrics = {"train-loss": 1.0, "num-steps": 1, "num-test-items": TESTS}
    return ClientUpdate(client, EXAMPLES, changes, routing(), metrics)


def routing() -> RoutingStats:
    """One layer of two experts, which share the tokens evenly; both were trained."""
    ones, half = torch.ones(1, 2, dtype=torch.int64), torch.full((1, 2), 0.5)
    means = {"prob": half, "margin": half, "peak": half, "kl": torch.zeros(1, 2)}
    return RoutingStats(count=ones, trained=ones, tokens=torch.tensor([2]), **means)


def score(client: int, correct: int = 0, items: int = TESTS, loss: float = 1.0) -> ClientScore:
    return ClientScore(client, loss, correct, items)


# -- training replies ----------------------------------------------------------------------------


def honest(turn: Turn) -> RecordDict:
    reply = encode_update(update(turn.own, turn.task), question=turn.task.question)
    if turn.memory is not None:
        keep(turn.memory, reply)
    return reply


def lie(turn: Turn, client: int | None = None, **entries: Any) -> RecordDict:
    """A well-made lie: other changes, and what the attack says."""
    number = turn.own if client is None else client
    reply = encode_update(update(number, turn.task, LIE), question=turn.task.question)
    metrics = reply.metric_records["metrics"]
    # Beyond what Flower's records allow a client to write, but not what they can carry.
    vars(metrics)["_data"].update({name.replace("_", "-"): v for name, v in entries.items()})
    return seal(reply)


def as_victim(turn: Turn) -> RecordDict:
    return lie(turn, turn.victim)


def another_number(turn: Turn) -> RecordDict:
    return lie(turn, 100 + turn.task.server_round)


def raises(turn: Turn) -> RecordDict:
    """Blame the victim, at length, and paint the terminal."""
    text = f"client {turn.victim}: \x1b[31m\x1b[2J" + "broken \n" * 1_000_000
    raise RuntimeError(f"{text}\nclient {turn.victim}: out of memory \x1b]0;owned\x07\u202e")


def raises_quietly(turn: Turn) -> RecordDict:
    raise RuntimeError(f"client {turn.victim}: out of memory")


def keep(memory: Path, reply: RecordDict) -> None:
    content = {
        "arrays": {name: a.data for name, a in reply.array_records["arrays"].items()},
        "metrics": dict(reply.metric_records["metrics"]),
        "update": dict(reply.config_records["update"]),
    }
    (memory / "reply").write_bytes(pickle.dumps(content))


def replay(turn: Turn) -> RecordDict:
    """Send the last honest reply again, as it was."""
    assert turn.memory is not None
    content = pickle.loads((turn.memory / "reply").read_bytes())
    arrays = {name: raw_array(data) for name, data in content["arrays"].items()}
    return RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord(content["metrics"]),
            "update": ConfigRecord(content["update"]),
        }
    )


def wrong_run(turn: Turn) -> RecordDict:
    question = replace(turn.task.question, run_key="f" * 32)
    return encode_update(update(turn.own, turn.task, LIE), question=question)


def wrong_state(turn: Turn) -> RecordDict:
    question = replace(turn.task.question, state_version=turn.task.state_version + 1)
    return encode_update(update(turn.own, turn.task, LIE), question=question)


def next_round(turn: Turn) -> RecordDict:
    question = replace(turn.task.question, server_round=turn.task.server_round + 1)
    return encode_update(update(turn.own, turn.task, LIE), question=question)


def many_metrics(turn: Turn) -> RecordDict:
    return lie(turn, **{f"m{i}\x1b[31m\n": 1.0 for i in range(50_000)})


def long_name(turn: Turn) -> RecordDict:
    return lie(turn, **{"x" * 3_000_000: 1.0})


def long_list(turn: Turn) -> RecordDict:
    return lie(turn, train_loss=[1.0] * 300_000)


def config_bomb(turn: Turn) -> RecordDict:
    reply = lie(turn)
    reply["\x1b[31mbomb\n"] = ConfigRecord({f"k{i}": "x" * 50 for i in range(20_000)})
    return reply


def header_bomb(turn: Turn) -> RecordDict:
    reply = lie(turn)
    reply.config_records["update"]["held"] = "x" * 3_000_000
    reply.config_records["update"]["\x1b[2J"] = [b"y" * 1000] * 1000
    return reply


def array_bomb(turn: Turn) -> RecordDict:
    reply = lie(turn)
    for i in range(2000):
        reply.array_records["arrays"][f"\x1b[31m{i}"] = raw_array(b"z" * 100)
    return reply


def routing_bomb(turn: Turn) -> RecordDict:
    """More tokens than ten examples have."""
    many = torch.full((1, 2), 10**9)
    stats = replace(routing(), count=many, tokens=torch.tensor([10**9]))
    lying = replace(update(turn.own, turn.task, LIE), routing=stats)
    return encode_update(lying, question=turn.task.question)


def overfull(turn: Turn) -> RecordDict:
    """Every token at both experts of a model that uses one."""
    stats = replace(routing(), count=torch.full((1, 2), 2))
    lying = replace(update(turn.own, turn.task, LIE), routing=stats)
    return encode_update(lying, question=turn.task.question)


def empty(turn: Turn) -> RecordDict:
    return RecordDict()


def numbers_only(turn: Turn) -> RecordDict:
    return encode_number(turn.victim, turn.task.question)


def with_entry(**entries: Any) -> Callable[[Turn], RecordDict]:
    return lambda turn: lie(turn, **entries)


NAN, INF = float("nan"), float("inf")
TRAIN: dict[str, Callable[[Turn], RecordDict]] = {
    "as-victim": as_victim,
    "another-number": another_number,
    "raises": raises,
    "raises-quietly": raises_quietly,
    "replay": replay,
    "wrong-run": wrong_run,
    "wrong-state": wrong_state,
    "next-round": next_round,
    "many-metrics": many_metrics,
    "long-name": long_name,
    "long-list": long_list,
    "config-bomb": config_bomb,
    "header-bomb": header_bomb,
    "array-bomb": array_bomb,
    "routing-bomb": routing_bomb,
    "overfull": overfull,
    "empty": empty,
    "numbers-only": numbers_only,
    "2^62-examples": with_entry(num_examples=2**62),
    "no-examples": with_entry(num_examples=0),
    "minus-examples": with_entry(num_examples=-5),
    "half-examples": with_entry(num_examples=2.5),
    "true-client": with_entry(client=True),
    "minus-client": with_entry(client=-1),
    "2^62-client": with_entry(client=2**62),
    "2^62-partitions": with_entry(num_partitions=2**62),
    "client-beyond-partitions": with_entry(num_partitions=2),
    "nan-loss": with_entry(train_loss=NAN),
    "inf-loss": with_entry(train_loss=INF),
    "huge-loss": with_entry(train_loss=1e300),
    "forged-accuracy": with_entry(accuracy=1e9),
    "forged-round": with_entry(kept_round=10**6),
    "forged-staleness": with_entry(staleness=5),
    "forged-seconds": with_entry(**{"seconds-\x1b[31m": 1.0}),
    "minus-seconds": with_entry(seconds_train=-1.0),
    "2^62-steps": with_entry(num_steps=2**62),
    "many-steps": with_entry(num_steps=50),
    "2^62-tests": with_entry(num_test_items=2**62),
    "many-tests": with_entry(num_test_items=50),
    "true-protocol": with_entry(protocol=True),
}


# -- scores --------------------------------------------------------------------------------------


def scored(question: Question | None = None, **entries: Any) -> Callable[[Turn], RecordDict]:
    def answer(turn: Turn) -> RecordDict:
        content = encode_score(score(turn.own, 1), question=question or turn.task.question)
        vars(content.metric_records["metrics"])["_data"].update(entries)
        return content

    return answer


SCORES: dict[str, Callable[[Turn], RecordDict]] = {
    "2^62-items": scored(correct=2**62, items=2**62),
    "many-items": scored(correct=50, items=50),
    "ten-items": scored(correct=10, items=10),  # a node that has not trained may have them
    "beyond-items": scored(correct=2, items=1),
    "minus-items": scored(items=-1, correct=-1),
    "true-items": scored(items=True, correct=True),
    "nan-score": scored(loss=NAN),
    "inf-score": scored(loss=INF),
    "loss-without-items": scored(loss=1e6, items=0, correct=0),
    "int-loss": scored(loss=10**15),
    "score-of-victim": scored(client=0),
    "score-of-another": scored(client=77),
    "score-of-another-run": scored(question=Question(1, "e" * 32, 1)),
    "score-with-more": scored(**{"\x1b[31m": 1.0}),
    "no-score": empty,
}
