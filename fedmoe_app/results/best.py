"""Which round's model a run keeps: the one with the best score on validation rows.

A run that keeps its best round notes ``validation`` (the scores) and ``best`` (the round so far) in
each line of ``metrics.jsonl``; tables, pages, cards and comparisons read them here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Metric = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class Best:
    """The best round so far, and its score on the validation rows."""

    round: int
    value: float


class BestRound:
    """Notes scores, knows the best round so far, and when to stop waiting for a better one.

    Of equal scores the first counts: less training for the same.

    Args:
        metric: ``accuracy``, the higher the better, or ``loss``, the lower.
        patience: rounds after the best one at which the run ends; 0 for never.

    Attributes:
        best: None before the first score.
    """

    def __init__(self, metric: Metric, patience: int = 0) -> None:
        self.metric, self.patience = metric, patience
        self.best: Best | None = None

    def note(self, server_round: int, score: Mapping[str, Any] | None) -> bool:
        """Take the score of a round; return whether it is the best so far."""
        value = (score or {}).get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        sign = 1 if self.metric == "accuracy" else -1
        if self.best is not None and sign * value <= sign * self.best.value:
            return False
        self.best = Best(server_round, float(value))
        return True

    def is_over(self, server_round: int) -> bool:
        """Tell whether ``patience`` rounds have passed since the best one."""
        if not self.patience or self.best is None:
            return False
        return server_round - self.best.round >= self.patience

    def line(self, server_round: int) -> dict[str, Any]:
        """Return what a line of ``metrics.jsonl`` says of the best round; empty without one."""
        if self.best is None:
            return {}
        ended = self.is_over(server_round)
        named = {"round": self.best.round, "value": self.best.value}
        return {"by": self.metric, **named, "ended": ended}


def best_of(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return ``best`` of a run's last line; None where the run keeps its last round."""
    return (lines[-1].get("best") or None) if lines else None


def ended_early(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a run ended because no round was better for ``patience`` rounds."""
    best = best_of(lines)
    return best is not None and bool(best["ended"])


def kept_line(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the line of the round whose model the run keeps: the best, else the last."""
    best = best_of(lines)
    if best is None:
        return lines[-1]
    return next((line for line in lines if line["round"] == best["round"]), lines[-1])


def kept_note(lines: Sequence[Mapping[str, Any]]) -> str:
    """Say which round's model is kept and why; "" where it is the last one's."""
    best = best_of(lines)
    if best is None:
        return ""
    score = f"{best['by']} {best['value']:.3f} on validation rows"
    early = f"; ended after round {lines[-1]['round']}" if best["ended"] else ""
    return f"round {best['round']}, the best by {score}{early}"
