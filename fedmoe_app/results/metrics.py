"""What happened in a round, and its line in ``metrics.jsonl``.

Nothing in a line but ``seconds`` depends on time, on Flower's random node ids or on the order in
which replies arrived, so that two runs with one seed write the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmoe_app.wire.metrics import COLUMNS, CPU, seconds_by_phase
from fedmoe_app.wire.update import ClientUpdate

if TYPE_CHECKING:
    from fedmoe_app.aggregation.guard import Guarded


class ClientColumn(NamedTuple):
    """What a line of ``metrics.jsonl`` holds of each client that told it, for tables.

    ``title`` may hold ``{metric}``; ``whole`` is whether the values are counts.
    """

    key: str
    title: str
    whole: bool


CLIENT_COLUMNS = tuple(
    ClientColumn(each.column, each.title, each.allowed.whole) for each in COLUMNS if each.title
)


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


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round; made once, when the round is over.

    Attributes:
        server_round: its number; 0 is the initial model.
        metric: what ``accuracy`` means (:attr:`fedmoe_app.tasks.base.Task.metric`).
        aggregated: whether the global model changed; of round 0, whether it was evaluated.
        num_asked: clients asked to train.
        updates: in client order, without their changes.
        failures: reason by client or node; those of the round itself by ``round``.
        rejected: training replies by kind of fault.
        bytes_up: of the training replies, by client.
        bytes_up_total: of all replies, evaluation included.
        bytes_down_to: of what asked a client to train, by client.
        bytes_down: of all messages.
        lost_state: clients that had lost what they kept.
        guarded: what the guard did; None without one.
        sums_to: what it left of sums without training, by client, 1 for all; empty if there were
            none.
        diagnostics: of the scheme, by name.
        evaluation: ``loss`` and ``accuracy``; None if there was none.
        validation: likewise, on the rows that choose the best round.
        best: of :meth:`fedmoe_app.results.best.BestRound.line`; empty without one.
        seconds: by phase of the round.
        round_trips: seconds from asking to the reply, by client or node.
        privacy: what the run has spent so far; empty without differential privacy.
        sums: figures of a masked sum; empty where there was none.
        num_summed: clients in it.
        is_private: whether it says nothing of single clients, or of how many there were.
    """

    server_round: int
    metric: str = "accuracy"
    aggregated: bool = False
    num_asked: int = 0
    updates: tuple[ClientUpdate, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    bytes_up: Mapping[int, int] = field(default_factory=dict)
    bytes_up_total: int = 0
    bytes_down_to: Mapping[int, int] = field(default_factory=dict)
    bytes_down: int = 0
    lost_state: tuple[int, ...] = ()
    guarded: Guarded | None = None
    sums_to: Mapping[int, float] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None
    best: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    round_trips: Mapping[str, float] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, Any] = field(default_factory=dict)
    num_summed: int = 0
    is_private: bool = False

    @cached_property
    def line(self) -> dict[str, Any]:
        """The round's line in ``metrics.jsonl``, which several callbacks need."""
        return metrics_line(self)


def metrics_line(record: RoundRecord) -> dict[str, Any]:
    """Describe a round as a line of ``metrics.jsonl``."""
    evaluation = dict(record.evaluation or {})
    updates = record.updates
    line = {
        "round": record.server_round,
        "status": "ok" if record.aggregated else "failed",
        "loss": evaluation.get("loss"),
        "accuracy": evaluation.get("accuracy"),
        "metric": record.metric,
        "train_loss": _mean_train_loss(updates),
        "num_clients": record.num_summed or len(updates),
        "bytes_up": record.bytes_up_total,
        "bytes_down": record.bytes_down,
        "clients": [_client(position, record) for position in range(len(updates))],
        "failures": [{"who": who, "reason": why} for who, why in sorted(record.failures.items())],
        "rejected": dict(sorted(record.rejected.items())),
        "routing": {  # [N, L, E]
            "count": [update.routing.count.tolist() for update in updates],
            "trained": [update.routing.trained.tolist() for update in updates],
        },
        "diagnostics": _compact(record.diagnostics),
        **_guard(record),
        **({"validation": dict(record.validation)} if record.validation is not None else {}),
        **({"best": dict(record.best)} if record.best else {}),
        "seconds": {name: round(value, 3) for name, value in record.seconds.items()}
        | client_seconds(updates, record.round_trips),
    }
    if record.is_private:
        line |= {"num_clients": None, "bytes_up": None, "bytes_down": None}
    told = {"privacy": dict(record.privacy), "secure_sum": dict(record.sums)}
    return line | {name: figures for name, figures in told.items() if figures}


def _mean_train_loss(updates: Sequence[ClientUpdate]) -> float | None:
    total = sum(update.counted for update in updates)
    if not total:
        return None
    return sum(u.metrics["train-loss"] * u.counted for u in updates) / total


def _client(position: int, record: RoundRecord) -> dict[str, Any]:
    update = record.updates[position]
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        **{metric.column: metric.value(update.metrics) for metric in COLUMNS},
        "selection_ratio": _selection_ratio(record, position),
        "staleness": _whole(update.metrics.get("staleness")),
        "state_lost": update.client in record.lost_state,
        "bytes_up": record.bytes_up[update.client],
        "bytes_down": record.bytes_down_to.get(update.client, 0),
        "codec": update.codec,
        "experts_sent": int((update.routing.trained > 0).sum()),
        **_guarded(update, record.guarded),
    }


def _guard(record: RoundRecord) -> dict[str, Any]:
    """Return the norms that the guard's bounds were multiples of, by kind of block.

    And of sums without training, what was left of each client's.
    """
    found: dict[str, Any] = {}
    if record.guarded is not None:
        found["typical"] = _compact(dict(record.guarded.typical))
    if record.sums_to:
        found["sums_to"] = {str(c): _compact(float(f)) for c, f in record.sums_to.items()}
    return {"guard": found} if found else {}


def _guarded(update: ClientUpdate, guarded: Guarded | None) -> dict[str, Any]:
    """Return what a client counted as, and how much was left of its most clipped block.

    And, where a scheme weighs clients by numbers of its own, of the most clipped of these.
    """
    if guarded is None:
        return {}
    found = {"counts_as": update.counted, "clipped_to": _compact(guarded.factors[update.client])}
    if guarded.masses:
        found["weighed_to"] = _compact(guarded.masses[update.client])
    return found


def _selection_ratio(record: RoundRecord, position: int) -> float | None:
    """Return r(c) of a client, the mean over the layers, if the scheme tells it."""
    ratios = record.diagnostics.get("selection_ratio")  # [L, N]
    return None if ratios is None else float(ratios[:, position].mean())


def _whole(value: float | None) -> int | None:
    """Return a count, which travels as a float among the metrics."""
    return None if value is None else int(value)


def _compact(value: Any) -> Any:
    """Return tensors as lists, numbers with six digits: matrices make lines long enough."""
    if isinstance(value, Mapping):
        return {name: _compact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return _compact(value.tolist()) if hasattr(value, "tolist") else value
