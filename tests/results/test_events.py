"""log.jsonl: a JSON object a line, with round, scheme, client or node."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fedmoe_app.results.events import EventLog, described
from fedmoe_app.results.metrics import RoundReport
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
    progress.start(2)
    report = RoundReport(1, folded=True, evaluation={"loss": 1.5, "accuracy": 0.5})
    report.seconds["round"] = 2.0
    lines = logged(
        tmp_path / "log.jsonl",
        lambda: progress.round_started(1, 3),
        lambda: progress.reply("client 4", {"train-loss": 0.5, "num-examples": 7}),
        lambda: progress.failure("node 812", "out of memory"),
        lambda: progress.round_done(report),
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
    lines = logged(path, lambda: logger.info("b", extra=described("resumed", round=3)))
    assert [(line["message"], line["round"]) for line in lines] == [("a", None), ("b", 3)]
