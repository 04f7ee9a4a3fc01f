"""Where the seconds of a round went, client by client: the entry ``seconds`` of a metrics line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmoe_app.client.timing import CPU, seconds_by_phase
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
