"""FedAvg that looks at the clock in every batch, to time training alone within a real round."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app import Client, FedAvg, LocalStep, ModelShape, WeightTerm

TICKS: list[float] = []  # seconds, one a forward pass


@dataclass(frozen=True)
class Tick(WeightTerm):
    """Notes the time after each batch's forward pass."""

    def loss(self, step: LocalStep) -> Tensor | None:
        """Add nothing to the loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        TICKS.append(time.perf_counter())
        return None


@dataclass(frozen=True)
class Clock(FedAvg):
    """FedAvg with a clock in its loss."""

    def client(self, model: ModelShape) -> Client:
        """Look at the clock."""
        return Client(terms=(Tick(),))
