"""FedAvg: every trainable tensor is averaged with weights n_i / Σ n.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv:1602.05629, algorithm 1:

    θ ← θ + Σ_i (n_i / Σ_j n_j)·Δ_i          Δ_i = local − global

An expert that client i did not train has Δ_i = 0: its weight stays in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.schemes.base import Scheme


@dataclass(frozen=True)
class FedAvg(Scheme):
    """Plain averaging; the empty halves of :class:`Scheme`."""
