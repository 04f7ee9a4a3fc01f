"""What happened in a round, and its line in ``metrics.jsonl``.

Nothing in a line but ``seconds`` depends on time, on Flower's random node ids or on the order in
which replies arrived, so that two runs with one seed write the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmoe_app.wire.metrics import CPU, seconds_by_phase
from fedmoe_app.wire.update import ClientUpdate


def client_seconds(
    updates: Sequence[ClientUpdate], round_trips: Mapping[str, float]
) -> dict[str, Any]:
    """Return ``clients``: the phases of every client that told them, else nothing.

    Args:
        updates: in client order, with the phases among their metrics
            (:mod:`fedmoe_app.client.timing`).
        round_trips: seconds from asking to the reply, by ``client N``.

    ``upload`` is the rest of the round trip: the reply's transfer and the polling for it. It takes
    the error of ``download``, which compares two machines' clocks; the sum of both is right.
    """
    lines = []
    for update in updates:
        phases = seconds_by_phase(update.metrics)
        if not phases:
            continue
        if (total := round_trips.get(f"client {update.client}")) is not None:
            known = sum(seconds for name, seconds in phases.items() if name != CPU)
            phases |= {"upload": max(0.0, total - known), "total": total}
        client = {"client": update.client}  # whatever a node calls its phases
        lines.append(client | {name: round(s, 3) for name, s in phases.items()} | client)
    return {"clients": lines} if lines else {}


@dataclass
class RoundReport:
    """What happened in a round."""

    server_round: int
    updates: list[ClientUpdate] = field(default_factory=list)  # in client order, without changes
    failures: dict[str, str] = field(default_factory=dict)  # client or node -> reason
    rejected: dict[str, int] = field(default_factory=dict)  # kind of fault -> training replies
    bytes_up: dict[int, int] = field(default_factory=dict)  # of the training replies, by client
    bytes_up_total: int = 0  # of all replies, evaluation included
    bytes_down_by_node: dict[int, int] = field(default_factory=dict)  # of what asks it to train
    bytes_down_to: dict[int, int] = field(default_factory=dict)  # the same by client
    bytes_down: int = 0  # of all messages
    num_asked: int = 0
    folded: bool = False
    lost_state: list[int] = field(default_factory=list)  # clients
    diagnostics: dict[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)  # seconds by client, from asking


def metrics_line(report: RoundReport, metric: str) -> dict[str, Any]:
    """Describe a round.

    Args:
        report: what happened.
        metric: what ``accuracy`` means for the task (:attr:`fedmoe_app.tasks.base.Task.metric`).
    """
    evaluation = dict(report.evaluation or {})
    updates = report.updates
    return {
        "round": report.server_round,
        "status": "ok" if report.folded else "failed",
        "loss": evaluation.get("loss"),
        "accuracy": evaluation.get("accuracy"),
        "metric": metric,
        "train_loss": _mean_train_loss(updates),
        "num_clients": len(updates),
        "bytes_up": report.bytes_up_total,
        "bytes_down": report.bytes_down,
        "clients": [_client(position, report) for position in range(len(updates))],
        "failures": [{"who": who, "reason": why} for who, why in sorted(report.failures.items())],
        "rejected": dict(sorted(report.rejected.items())),
        "routing": {  # [N, L, E]
            "count": [update.routing.count.tolist() for update in updates],
            "trained": [update.routing.trained.tolist() for update in updates],
        },
        "diagnostics": _compact(report.diagnostics),
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()}
        | client_seconds(updates, report.round_trips),
    }


def _mean_train_loss(updates: list[ClientUpdate]) -> float | None:
    total = sum(update.num_examples for update in updates)
    if not total:
        return None
    return sum(u.metrics["train-loss"] * u.num_examples for u in updates) / total


def _client(position: int, report: RoundReport) -> dict[str, Any]:
    update = report.updates[position]
    metrics = update.metrics
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        "train_loss": metrics.get("train-loss"),
        "loss": metrics.get("loss"),
        "accuracy": metrics.get("accuracy"),
        "local_loss": metrics.get("local-loss"),
        "local_accuracy": metrics.get("local-accuracy"),
        "personal_accuracy": metrics.get("personal-accuracy"),
        "mixing_gate": metrics.get("mixing-gate"),
        "num_truncated": metrics.get("num-truncated"),
        "num_steps": _whole(metrics.get("num-steps")),
        "expert_budget": _whole(metrics.get("expert-budget")),
        "experts_held": _whole(metrics.get("experts-held")),
        "selection_ratio": _selection_ratio(report, position),
        "staleness": _whole(metrics.get("staleness")),
        "kept_round": _whole(metrics.get("kept-round")),
        "state_lost": update.client in report.lost_state,
        "state_stored": _flag(metrics.get("state-stored")),
        "bytes_up": report.bytes_up[update.client],
        "bytes_down": report.bytes_down_to.get(update.client, 0),
        "codec": update.codec,
        "residual_round": _whole(metrics.get("residual-round")),
        "experts_sent": int((update.routing.trained > 0).sum()),
    }


def _selection_ratio(report: RoundReport, position: int) -> float | None:
    """Return r(c) of a client, the mean over the layers, if the scheme tells it."""
    ratios = report.diagnostics.get("selection_ratio")  # [L, N]
    return None if ratios is None else float(ratios[:, position].mean())


def _whole(value: float | None) -> int | None:
    """Return a count, which travels as a float among the metrics."""
    return None if value is None else int(value)


def _flag(value: float | None) -> bool | None:
    return None if value is None else bool(value)


def _compact(value: Any) -> Any:
    """Return tensors as lists, numbers with six digits: matrices make lines long enough."""
    if isinstance(value, Mapping):
        return {name: _compact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return _compact(value.tolist()) if hasattr(value, "tolist") else value
