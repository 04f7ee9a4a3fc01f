"""Progress of a run: what has happened, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.events import Failed, PrivacySpent, Replied, RoundDone, RoundStarted, tell
from fedmoe_app.shown.duration import duration

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundRecord


class Progress(Callback):
    """Tells each step of a run as an event, with an estimate of the time that is left."""

    def __init__(self) -> None:
        self._num_rounds = 0
        self._round_seconds: list[float] = []
        self._round = 0
        self._asked = 0
        self._answered = 0
        self._started = 0.0
        self._startup: float | None = None  # seconds that the first round took to start processes

    def on_start(self, num_rounds: int) -> None:
        """Note how many rounds the run has."""
        self._num_rounds = num_rounds

    def on_ask(self, server_round: int, num_asked: int) -> None:
        """Announce a round."""
        self._round, self._asked, self._answered = server_round, num_asked, 0
        self._started = time.monotonic()
        tell(RoundStarted(server_round, self._num_rounds, num_asked))

    def on_reply(self, who: str, metrics: Mapping[str, Any]) -> None:
        """Tell of one client's reply."""
        self._answered += 1
        if self._startup is None:
            self._startup = _seconds_before_work(time.monotonic() - self._started, metrics)
        tell(Replied(who, dict(metrics), self._answered, self._asked, self._left()))

    def on_failure(self, who: str, reason: str) -> None:
        """Tell of a client, or a round, that failed."""
        if who != "round":
            self._answered += 1
        tell(Failed(who, reason))

    def on_round(self, record: RoundRecord) -> None:
        """Tell how a round ended and when the run may end."""
        number, seconds = record.server_round, record.seconds["round"]
        if number:
            self._round_seconds.append(seconds)
        metrics: Mapping[str, Any] = record.evaluation or {}
        left = self._num_rounds - number
        tell(
            RoundDone(
                number,
                self._num_rounds,
                record.aggregated,
                num_clients=None if record.is_private else record.num_summed or len(record.updates),
                num_failures=len(record.failures),
                seconds=round(seconds, 3),
                loss=metrics.get("loss"),
                accuracy=metrics.get("accuracy"),
                left=f"about {duration(left * self._mean())} left" if left and number else "",
            )
        )
        if record.privacy:
            tell(PrivacySpent(number, **record.privacy))

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
            return f"about {duration(in_round)} left in this round"
        rounds_left = self._num_rounds - self._round
        return f"about {duration(in_round + rounds_left * self._mean())} left"


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
