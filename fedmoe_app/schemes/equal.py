"""The mean of all clients with equal weights, whatever their examples."""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.schemes.parts import Mean
from fedmoe_app.schemes.views import Block, Reply


@dataclass(frozen=True)
class Equal(Mean):
    """(1/N)·Σ_i Δ_i: a client that did not train a block counts as unchanged."""

    def weight(self, reply: Reply, block: Block) -> float:
        """Return 1."""
        return 1.0
