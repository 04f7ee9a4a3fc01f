"""log.jsonl: a JSON object a line, with round, scheme, client or node."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app.results.events import (
    PREFIX,
    AppDone,
    BestKept,
    Ended,
    Event,
    EventLog,
    Failed,
    LateReply,
    PrivacySpent,
    Replied,
    ResultsAt,
    Resumed,
    RoundDone,
    RoundStarted,
    TableFollows,
    Waiting,
    from_line,
    tell,
    to_line,
)
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.progress import Progress


def logged(path: Path, *actions: Any) -> list[dict[str, Any]]:
    logger = logging.getLogger("fedmoe")
    level, handler = logger.level, EventLog(path, {"run": "mine", "scheme": "fedavg"})
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        for action in actions:
            action()
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_progress_is_logged_with_its_figures(tmp_path: Path) -> None:
    progress = Progress()
    progress.on_start(2)
    scores = {"loss": 1.5, "accuracy": 0.5}
    record = RoundRecord(1, aggregated=True, evaluation=scores, seconds={"round": 2.0})
    lines = logged(
        tmp_path / "log.jsonl",
        lambda: progress.on_ask(1, 3),
        lambda: progress.on_reply("client 4", {"train-loss": 0.5, "num-examples": 7}),
        lambda: progress.on_failure("node 812", "out of memory"),
        lambda: progress.on_round(record),
        lambda: logging.getLogger("fedmoe").warning("the disk of %s is slow", "node 1"),
    )
    assert [line["event"] for line in lines] == [
        "round-started", "reply", "failure", "round-done", "message",
    ]  # fmt: skip
    assert all(line["run"] == "mine" and line["scheme"] == "fedavg" for line in lines)
    assert [line["round"] for line in lines] == [1] * 5
    assert lines[0]["asked"] == 3
    assert (lines[1]["client"], lines[1]["metrics"]["num-examples"]) == (4, 7)
    assert (lines[2]["node"], lines[2]["reason"]) == (812, "out of memory")
    assert lines[2]["level"] == lines[4]["level"] == "warning"
    assert (lines[3]["loss"], lines[3]["folded"]) == (1.5, True)
    assert lines[4]["message"] == "the disk of node 1 is slow"
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_lines_of_a_resumed_run_follow_those_before(tmp_path: Path) -> None:
    logger = logging.getLogger("fedmoe")
    path = tmp_path / "log.jsonl"
    logged(path, lambda: logger.info("a"))
    lines = logged(path, lambda: tell(Resumed(3, "b", {})))
    told = [(line["message"], line["round"]) for line in lines]
    assert told == [("a", None), ("going on from b", 3)]


EVENTS = [
    RoundStarted(1, 3, 4),
    Replied("client 2", {"train-loss": 0.5, "num-examples": 7}, 1, 4, "about 5 s left"),
    Failed("node 812", "out of\u2028memory"),
    RoundDone(2, 3, True, 4, 1, 2.5, float("inf"), 0.5, "about 2 s left"),
    PrivacySpent(2, 1.5, 1e-5, 2, 0.7),
    LateReply("client 1"),
    BestKept(5, 3, "accuracy", 0.75),
    Waiting(1, {"client 1": "busy"}, 10.0, 60.0),
    ResultsAt("/there/a run"),
    TableFollows(),
    AppDone(),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_what_is_written_of_an_event_is_read_back(event: Event) -> None:
    line = to_line(event)
    assert line.isprintable()
    assert from_line(line) == event
    assert from_line(f"{line}\n") == event


def test_every_event_that_a_run_tells_of_can_be_read_but_two_for_people() -> None:
    assert {type(event) for event in EVENTS} == set(Event.__subclasses__()) - {Resumed, Ended}


@pytest.mark.parametrize(
    "line",
    [
        "12:00:01 round 1/2: 3 clients train",
        PREFIX,
        f"{PREFIX}[]",
        f'{PREFIX}{{"event": "from-the-future"}}',
        f'{PREFIX}{{"event": "round-started", "round": 1}}',
        f'{PREFIX}{{"event": "round-started", "round": 1, "num_rounds": 2, "asked": []}}',
    ],
)
def test_other_lines_are_no_events(line: str) -> None:
    assert from_line(line) is None


def test_fields_of_another_release_are_passed_over() -> None:
    line = to_line(LateReply("client 1")).replace("}", ', "new": 1}')
    assert from_line(line) == LateReply("client 1")


def test_a_node_that_refuses_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fedmoe"):
        tell(Failed("node 7", "this node's policy does not allow scheme = 'fcmoe'"))
        tell(Failed("node 8", "out of memory"))
    assert caplog.messages == [
        "  node 7 refused: this node's policy does not allow scheme = 'fcmoe'",
        "  node 8 failed: out of memory",
    ]
