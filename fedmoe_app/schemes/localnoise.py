"""FedAvg whose clients bound their changes and add noise to them before they leave.

Each client's changes, all tensors together, with K values in all:

    Δ_i ← Δ_i·min(1, C/‖Δ_i‖)         then    Δ_i ← Δ_i + N(0, (z·C)²·I)

The Gaussian mechanism on the client's own side: Dwork and Roth, "The Algorithmic Foundations of
Differential Privacy", 2014, appendix A; with federated averaging, as in Geyer et al., 2017,
arXiv:1712.07557, whose noise the server adds. The server is not trusted with Δ_i. The price: the
mean of N clients holds noise of z·C/√N a value, where the server's own (privacy.dp) would hold
z·C/N. A client's number of examples, its routing histogram, its metrics, and which experts it
trained leave as they are: this bounds what a change tells, and is no guarantee for the whole reply.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, Outgoing
from fedmoe_app.schemes.ranges import in_range

BUILT_IN = {"localnoise": "LocalNoise"}

_ENTROPY = 16  # bytes of the system's randomness that a client's noise begins with


@dataclass(frozen=True)
class Bounded(Outgoing):
    """All that leaves, as one vector, is not longer than C.

    Attributes:
        clip: C.
    """

    clip: float = 1.0

    def send(self, sent: Mapping[str, Tensor], seed: int) -> Tensors:
        """Shorten it if it is longer."""
        norm = sum(float(tensor.double().square().sum()) for tensor in sent.values()) ** 0.5
        factor = min(1.0, self.clip / norm) if norm else 1.0
        return {name: factor * tensor for name, tensor in sent.items()}


@dataclass(frozen=True)
class Noise(Outgoing):
    """Normal noise on every value.

    Attributes:
        deviation: its standard deviation.
        seeded: draw it from the run's seed, so that a run can be repeated: it hides nothing then.
    """

    deviation: float = 0.01
    seeded: bool = False

    def send(self, sent: Mapping[str, Tensor], seed: int) -> Tensors:
        """Add it, in the order of the names."""
        entropy = seed if self.seeded else int.from_bytes(os.urandom(_ENTROPY))
        generator = np.random.Generator(np.random.Philox(entropy))
        noise = {
            name: torch.from_numpy(generator.standard_normal(tensor.numel())).view(tensor.shape)
            for name, tensor in sent.items()
        }
        return {n: (t.double() + self.deviation * noise[n]).to(t) for n, t in sent.items()}


@dataclass(frozen=True)
class LocalNoise(Scheme):
    """FedAvg with bounded, noisy changes.

    Attributes:
        clip: C.
        noise: z, in units of C; 0 only bounds.
        seeded: draw the noise from the run's seed; for tests.
    """

    clip: float = 1.0
    noise: float = 0.01
    seeded: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("localnoise", clip=(self.clip, 0, None), noise=(self.noise, 0, 1e6))
        in_range("localnoise", seeded=(int(self.seeded), 0, 1))

    def check(self, run: Run) -> Sequence[str]:
        """Say what the noise does not cover."""
        found = [
            "localnoise: number of examples, routing histogram, metrics and the choice of experts "
            "leave without noise"
        ]
        if self.seeded:
            found.append("localnoise: seeded = true: whoever knows the seed can take the noise off")
        return found

    def client(self, model: ModelShape) -> Client:
        """Bound, then add noise."""
        noise = (Noise(self.noise * self.clip, self.seeded),) if self.noise else ()
        return Client(send=(Bounded(self.clip), *noise))
