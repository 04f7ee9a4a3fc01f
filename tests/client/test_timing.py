"""The phases of a client's round."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from flwr.app import Message, RecordDict

from fedmoe_app.client.timing import Stopwatch
from fedmoe_app.compare.in_process import task_identity
from fedmoe_app.wire.metrics import seconds_by_phase


@pytest.fixture
def message() -> Iterator[Message]:
    with task_identity():
        yield Message(RecordDict(), 1, "train")


def test_a_phase_that_comes_twice_is_added_up() -> None:
    watch = Stopwatch()
    watch.add("evaluate", 0.25)
    watch.add("evaluate", 0.5)
    watch.add("train", 2.0)
    assert watch.seconds == {"evaluate": 0.75, "train": 2.0}


def test_a_phase_counts_also_when_it_raises() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.phase("load"):
        time.sleep(0.02)
        raise KeyError
    assert watch.seconds["load"] >= 0.02


def test_metrics_come_back_as_phases() -> None:
    watch = Stopwatch()
    watch.add("train", 2.0)
    metrics = {"train-loss": 1.0} | watch.metrics()
    assert metrics.keys() == {"train-loss", "seconds-train", "seconds-cpu"}
    assert metrics["seconds-cpu"] >= 0
    assert seconds_by_phase(metrics)["train"] == 2.0
    assert "train-loss" not in seconds_by_phase(metrics)


def test_the_time_before_the_app_is_called(message: Message) -> None:
    message.metadata.__dict__["_created_at"] = time.time() - 5.0
    watch = Stopwatch.for_message(message)
    assert watch.seconds["start"] == 0.0  # this process was not started for the message
    assert watch.seconds["download"] == pytest.approx(5.0, abs=2.0)


def test_a_server_whose_clock_is_ahead_gives_no_negative_time(message: Message) -> None:
    message.metadata.__dict__["_created_at"] = time.time() + 60.0
    assert Stopwatch.for_message(message).seconds["download"] == 0.0


def test_a_process_for_one_message_tells_its_age(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/bin/flwr-clientapp", "--token", "x"])
    watch = Stopwatch.for_message(message)
    age = time.time() - psutil.Process().create_time()  # known to the second
    assert watch.seconds["start"] == pytest.approx(age, abs=2.5)
    # All CPU time of the process is the message's, imports included.
    assert watch.metrics()["seconds-cpu"] == pytest.approx(time.process_time(), abs=1.0)
