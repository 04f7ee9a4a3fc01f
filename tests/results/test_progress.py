"""Progress lines: readable times, and estimates only where there is something to go by."""

import logging
from collections.abc import Iterator

import pytest

from fedmoe_app.results import progress as module
from fedmoe_app.results.events import logger
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.progress import Progress
from fedmoe_app.shown.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min"), (-3, "0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def finished(number: int, seconds: float) -> RoundRecord:
    evaluation = {"loss": 1.5, "accuracy": 0.5}
    return RoundRecord(number, aggregated=True, evaluation=evaluation, seconds={"round": seconds})


class Lines(logging.Handler):
    """Collects messages, whatever other tests did to logging."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines that progress says during the test."""
    handler = Lines()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "disabled", False)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield handler.messages
    logger.setLevel(before)


def test_lines_of_a_run(said: list[str]) -> None:
    progress = Progress()
    progress.on_start(3)
    progress.on_round(finished(0, 1.0))
    progress.on_ask(1, 2)
    progress.on_reply("client 7", {"num-examples": 5, "train-loss": 1.25})
    progress.on_failure("client 3", "out of memory")
    progress.on_round(finished(1, 60.0))
    progress.on_ask(2, 2)
    progress.on_round(finished(2, 10.0))
    progress.on_round(RoundRecord(3, seconds={"round": 2.0}))
    lines = said
    assert lines[0] == "initial model: loss 1.500, accuracy 0.500 (1 s)"
    assert lines[2].startswith("  [1/2] client 7: 5 examples, loss 1.250, own accuracy - -> -")
    assert lines[2].endswith("left in this round)")
    assert lines[3] == "  client 3 failed: out of memory"
    # The first round starts processes: it counts only until there is another.
    assert lines[4] == "round 1/3: loss 1.500, accuracy 0.500 (1 min 0 s; about 2 min 0 s left)"
    assert lines[6] == "round 2/3: loss 1.500, accuracy 0.500 (10 s; about 10 s left)"
    assert lines[7] == "round 3/3: FAILED (2 s)"


def test_the_start_of_processes_is_not_multiplied(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client replied after 50 s, of which it worked 8: the others will take no 50 s."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress()
    progress.on_start(11)
    progress.on_ask(1, 2)
    now[0] = 50.0
    work = {"seconds-train": 6.0, "seconds-load": 2.0, "seconds-cpu": 30.0, "seconds-download": 42}
    progress.on_reply("client 0", work)
    assert said[-1].endswith("(about 8 s left in this round)")
    now[0] = 58.0
    progress.on_reply("client 1", work)
    progress.on_round(finished(1, 60.0))
    assert said[-1].endswith("(1 min 0 s; about 3 min 0 s left)")  # 10 rounds of 18 s
    progress.on_ask(2, 2)
    progress.on_round(finished(2, 20.0))
    assert said[-1].endswith("(20 s; about 3 min 0 s left)")
