"""FedNova: changes are normalised by the local steps that made them.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv:2007.07481, eq. 9 and 10, with p_i = n_i/Σn and τ_i the steps of client i:

    θ ← θ + (Σ p_i·τ_i)·Σ p_i·Δ_i/τ_i

Decision: τ_i are all optimiser steps of the round (a_i = τ_i, as for plain SGD), for every block. A
client that takes ten times the steps pulls no longer ten times as hard. Equal steps are FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Scaled, Server, Summed
from fedmoe_app.schemes.views import Block, Reply

BUILT_IN = {"fednova": "FedNova"}


@dataclass(frozen=True)
class ByStep(Summed):
    """(Σ p·τ)·Σ p·Δ/τ."""

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add n_i·Δ_i/τ_i, n_i and n_i·τ_i."""
        n, steps = reply.num_examples, max(reply.num_steps, 1.0)
        change = reply.change(block) or {}
        sums: dict[str, Scaled | float] = {
            f"sum.{k}": Scaled(n / steps, t) for k, t in change.items()
        }
        return sums | {"of": n, "steps": n * steps}

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Divide, and go the mean number of steps."""
        scale = sums["steps"] / sums["of"] ** 2
        return {k[4:]: t.mul_(scale) for k, t in sums.items() if k.startswith("sum.")}


@dataclass(frozen=True)
class FedNova(Scheme):
    """FedAvg of changes by step."""

    def server(self, model: ModelShape) -> Server:
        """Normalise every block."""
        return Server(dense=ByStep(), gates=ByStep(), experts=ByStep())
