"""Changes relative to an older global state, discounted by their age.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), AISTATS 2022,
arXiv:2106.06639: a change that started s versions ago counts Δ/√(1+s).
"""

from __future__ import annotations

from dataclasses import replace

from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.update import ClientUpdate


def discount(staleness: int) -> float:
    """Return 1/√(1+s) for s ≥ 0 versions."""
    return float((1 + staleness) ** -0.5)


def discounted(update: ClientUpdate, staleness: int) -> ClientUpdate:
    """Return the update with discounted changes, and ``staleness`` among its metrics.

    One that is not stale keeps its changes bit for bit.
    """
    metrics = update.metrics | {"staleness": float(staleness)}
    if not staleness:
        return replace(update, metrics=metrics)
    scaled = ModelState()
    for key, tensor in update.changes.named():
        scaled.insert(key, tensor * discount(staleness))
    return replace(update, changes=scaled, metrics=metrics)
