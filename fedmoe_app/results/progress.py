"""Progress lines of a run: what has happened, and about how long the rest takes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedmoe_app.results.events import MESSAGE, described
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.logs import LineFormatter

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundReport

logger = logging.getLogger("fedmoe")


def log_to_stdout() -> None:
    """Show this app's progress lines, once, whatever Flower's own logging does."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Progress:
    """Says each step of a run in one line, with an estimate of the time that is left."""

    def __init__(self) -> None:
        self._num_rounds = 0
        self._round_seconds: list[float] = []
        self._round = 0
        self._asked = 0
        self._answered = 0
        self._started = 0.0
        self._startup: float | None = None  # seconds that the first round took to start processes

    def say(self, line: str, event: str = MESSAGE, **fields: Any) -> None:
        """Print one line; its event and figures go to ``log.jsonl``."""
        logger.info(line, extra=described(event, **fields))

    def start(self, num_rounds: int) -> None:
        """Note how many rounds the run has."""
        self._num_rounds = num_rounds

    def round_started(self, server_round: int, asked: int) -> None:
        """Announce a round."""
        self._round, self._asked, self._answered = server_round, asked, 0
        self._started = time.monotonic()
        self.say(
            f"round {server_round}/{self._num_rounds}: {asked} clients train",
            "round-started",
            round=server_round,
            asked=asked,
        )

    def reply(self, who: str, metrics: Mapping[str, Any]) -> None:
        """Tell of one client's reply."""
        self._answered += 1
        if self._startup is None:
            self._startup = _seconds_before_work(time.monotonic() - self._started, metrics)
        loss, before, after = (
            _number(metrics.get(name)) for name in ("train-loss", "accuracy", "local-accuracy")
        )
        self.say(
            f"  [{self._answered}/{self._asked}] {who}: {_count(metrics.get('num-examples'))} "
            f"examples, loss {loss}, own accuracy {before} -> {after}{self._left()}",
            "reply",
            who=who,
            metrics=dict(metrics),
        )

    def failure(self, who: str, reason: str) -> None:
        """Tell of a client, or a round, that failed."""
        if who != "round":
            self._answered += 1
        extra = described("failure", who=who, reason=reason)
        logger.warning("  %s failed: %s", who, reason, extra=extra)

    def round_done(self, report: RoundReport) -> None:
        """Tell how a round ended and when the run may end."""
        number, seconds = report.server_round, report.seconds["round"]
        if number:
            self._round_seconds.append(seconds)
        metrics: Mapping[str, Any] = report.evaluation or {}
        outcome = (
            "FAILED"
            if not report.folded
            else (
                f"loss {_number(metrics.get('loss'))}, accuracy {_number(metrics.get('accuracy'))}"
            )
        )
        what = f"round {number}/{self._num_rounds}" if number else "initial model"
        left = self._num_rounds - number
        rest = f"; about {duration(left * self._mean())} left" if left and number else ""
        self.say(
            f"{what}: {outcome} ({duration(seconds)}{rest})",
            "round-done",
            round=number,
            folded=report.folded,
            num_clients=len(report.updates),
            num_failures=len(report.failures),
            seconds=round(seconds, 3),
            **{name: metrics.get(name) for name in ("loss", "accuracy")},
        )

    def _mean(self) -> float:
        """Mean seconds of a round; the first counts only while it is the only one.

        What it took to start processes is no part of it.
        """
        if len(self._round_seconds) == 1:
            return max(0.0, self._round_seconds[0] - (self._startup or 0.0))
        return sum(self._round_seconds[1:]) / len(self._round_seconds[1:])

    def _left(self) -> str:
        """Estimate from the replies so far; clients run side by side, so the rate is what counts.

        The first round also starts processes: it says nothing of the rounds that follow.
        """
        waiting = self._asked - self._answered
        if waiting <= 0:
            return ""
        elapsed = time.monotonic() - self._started
        if not self._round_seconds:
            elapsed = max(0.0, elapsed - (self._startup or 0.0))
        in_round = elapsed / self._answered * waiting
        if not self._round_seconds:
            return f" (about {duration(in_round)} left in this round)"
        rounds_left = self._num_rounds - self._round
        return f" (about {duration(in_round + rounds_left * self._mean())} left)"


def _seconds_before_work(elapsed: float, metrics: Mapping[str, Any]) -> float:
    """Return how long the first client to reply had not begun; 0 if it tells no phases.

    What it tells of are the seconds of its own work (:mod:`fedmoe_app.client.timing`); ``cpu`` is
    no phase, and ``download`` is the time before the work.
    """
    own = [
        float(value)
        for name, value in metrics.items()
        if name.startswith("seconds-") and name not in ("seconds-cpu", "seconds-download")
    ]
    return max(0.0, elapsed - sum(own)) if own else 0.0


def _count(value: Any) -> str:
    return f"{value}" if isinstance(value, int) else "-"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"
