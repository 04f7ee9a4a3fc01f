"""The figures of one run, out of its metrics lines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmoe_app.results.best import ended_early, kept_line
from fedmoe_app.results.classes import kept_classes
from fedmoe_app.results.folder import ResultsError

Curve = tuple[tuple[int, float], ...]
ROUND = "round"  # who a failed round notes as its own failure


@dataclass(frozen=True)
class Figures:
    """What one run came to.

    Attributes:
        metric: what accuracy means: ``accuracy`` or ``token accuracy``.
        curve: (round, accuracy of the global model) of every round that has one.
        accuracy: of the global model after the last round, or of the best round where the run
            keeps that, on the server's test set.
        loss: likewise, in nats.
        initial_loss: of the model before round 1.
        local_accuracy: mean over the clients of the last round, each after its local training
            on its own hold-out.
        local_variance: population variance of the same over the clients; None for one client.
        bytes_up: mean over the rounds, all clients together.
        bytes_up_total: sum over the rounds.
        seconds: sum over the rounds, the evaluation of the initial model included.
        failed_rounds: rounds that left the global model as it was.
        missing_replies: replies that were asked for and could not be used, sum over the rounds.
        failure: why the run counts as failed: it has no accuracy after the last round.
        validation: of the same model, on validation rows; None without any.
        macro_f1: of the same model, the mean F1 over the test set's classes; None where nothing is
            classified.
    """

    metric: str
    curve: Curve
    accuracy: float | None
    loss: float | None
    initial_loss: float | None
    local_accuracy: float | None
    local_variance: float | None
    bytes_up: float
    bytes_up_total: int
    seconds: float
    failed_rounds: int = 0
    missing_replies: int = 0
    failure: str | None = None
    validation: Mapping[str, float] | None = None
    macro_f1: float | None = None


def figures_of(lines: Sequence[dict[str, Any]], rounds: int) -> Figures:
    """Read the figures out of metrics lines (:mod:`fedmoe_app.results.metrics`).

    Raises:
        ResultsError: when lines or keys are missing: the run did not come to its end.
    """
    if not lines or (lines[-1].get("round") != rounds and not ended_early(lines)):
        raise ResultsError(f"the last line of metrics.jsonl is not that of round {rounds}")
    try:
        return _figures(lines)
    except (KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise ResultsError(f"metrics.jsonl lacks figures ({kind}: {error})") from None


def figures_in(folder: Path, lines: Sequence[dict[str, Any]], rounds: int) -> Figures:
    """Read the figures of a run's folder: those of its lines, and macro-F1 where it classifies.

    Raises:
        ResultsError: as :func:`figures_of`, and for a broken ``classes.jsonl``.
    """
    figures = figures_of(lines, rounds)
    classes = kept_classes(folder, lines)
    return replace(figures, macro_f1=classes.macro_f1) if classes else figures


def _figures(lines: Sequence[dict[str, Any]]) -> Figures:
    last = kept_line(lines)
    own = [c["local_accuracy"] for c in last["clients"] if c["local_accuracy"] is not None]
    trained = [int(line["bytes_up"] or 0) for line in lines if line["round"] != 0]
    return Figures(
        metric=str(last["metric"]),
        curve=tuple(
            (int(line["round"]), float(line["accuracy"]))
            for line in lines
            if line["accuracy"] is not None
        ),
        accuracy=last["accuracy"],
        loss=last["loss"],
        initial_loss=lines[0]["loss"],
        local_accuracy=statistics.fmean(own) if own else None,
        local_variance=statistics.pvariance(own) if len(own) > 1 else None,
        bytes_up=statistics.fmean(trained),
        bytes_up_total=sum(trained),
        seconds=sum(float(line["seconds"].get("round", 0.0)) for line in lines),
        failed_rounds=sum(line.get("status", "ok") != "ok" for line in lines),
        missing_replies=sum(len(_by_clients(line)) for line in lines),
        failure=_why_failed(lines) if last["accuracy"] is None else None,
        validation=last.get("validation"),
    )


def _by_clients(line: dict[str, Any]) -> list[dict[str, str]]:
    """Return the failures of clients; a failed round notes itself among them."""
    return [failure for failure in line.get("failures") or () if failure["who"] != ROUND]


def _why_failed(lines: Sequence[dict[str, Any]]) -> str:
    """Name the last round with a failure, its reason and that of one of its clients."""
    found = "no accuracy after the last round"
    line = next((line for line in reversed(lines) if line.get("failures")), None)
    if line is None:
        return found
    clients = _by_clients(line)
    reasons = [failure["reason"] for failure in line["failures"] if failure["who"] == ROUND]
    reasons += [f"{failure['who']}: {failure['reason']}" for failure in clients[:1]]
    if len(clients) > 1:
        reasons.append(f"and {len(clients) - 1} more")
    return " ".join(f"{found}; round {line['round']}: {'; '.join(reasons)}".split())


def losses(failed_rounds: int, missing_replies: int) -> list[str]:
    """Return ``1 round failed`` and ``2 replies missing``, each only where it is not zero."""
    rounds = f"{failed_rounds} round{'s' * (failed_rounds != 1)} failed"
    replies = f"{missing_replies} repl{'y' if missing_replies == 1 else 'ies'} missing"
    return [rounds] * bool(failed_rounds) + [replies] * bool(missing_replies)


def rounds_to(curve: Curve, target: float) -> int | None:
    """Return the first round whose accuracy is at least ``target``; None when there is none."""
    return next((number for number, accuracy in curve if accuracy >= target), None)
