"""Scheme: what one paper asks of the client and of the server, in one class.

A scheme is a frozen dataclass of hyper-parameters with pure hooks. A scheme that overrides
nothing is FedAvg (McMahan et al. 2017, arXiv:1602.05629): every trainable tensor is averaged with
weights n_i / Σ n. It does no I/O and never touches Flower.

Shapes: N clients in the round, M of them trained the expert at hand, L MoE layers, E experts a
layer, P parameters of one expert (or gate) flattened over its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.config import RunConfig
from fedmoe_app.moe.routing import RoutingStats


@dataclass(frozen=True)
class ModelShape:
    """What a scheme may ask of a model: L layers of E experts, K of them used by a token."""

    num_layers: int
    num_experts: int
    top_k: int


@dataclass(frozen=True)
class RoundInfo:
    """What the server knows of a round before it folds the updates, in client order."""

    server_round: int
    num_examples: Tensor  # [N] float32
    routing: tuple[RoutingStats, ...]  # N entries of [L, E] tensors

    def routing_of(self, name: str, layer: int) -> Tensor:
        """Stack one routing statistic of one layer over the clients, ``[N, E]``."""
        return torch.stack([getattr(stats, name)[layer] for stats in self.routing])


@dataclass(frozen=True)
class LocalStep:
    """What a client's training step offers to :meth:`Scheme.extra_loss`."""

    parameters: Mapping[str, Tensor]  # trainable tensors by key, with graph
    reference: Mapping[str, Tensor]  # the received values of the same tensors
    router_probs: Sequence[Tensor]  # per layer [T, E], with graph; empty unless asked for
    broadcast: Mapping[str, Tensor]  # what the server sent by :meth:`Scheme.broadcast`


@dataclass(frozen=True)
class Scheme:
    """The seam for every aggregation scheme; the defaults are FedAvg."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Scheme:
        """Build the scheme from the run config; a user's class gets ``scheme-args``."""
        return cls(**config.scheme_kwargs)

    def check(self, shape: ModelShape) -> None:
        """Refuse hyper-parameters that the model cannot serve.

        Raises:
            fedmoe_app.config.ConfigError: naming the value and the allowed range.
        """

    # -- on the client -------------------------------------------------------------------------

    @property
    def needs_router_probs(self) -> bool:
        """Whether :meth:`extra_loss` reads ``router_probs``."""
        return False

    def choose_experts(
        self, usage: Callable[[int], RoutingStats]
    ) -> Sequence[Collection[int]] | None:
        """Choose the experts to train, per layer; None trains all.

        Args:
            usage: runs the received model over at most that many local examples and returns
                their routing statistics. It costs forward passes, so call it only if needed.
        """
        return None

    def extra_loss(self, step: LocalStep) -> Tensor | None:
        """Return a scalar to add to the task's loss in every step, or None."""
        return None

    # -- on the server -------------------------------------------------------------------------

    def dense_weights(self, info: RoundInfo) -> Tensor:
        """Return the clients' weights for the dense tensors, ``[N]``."""
        return info.num_examples / info.num_examples.sum()

    def gate_weights(self, info: RoundInfo, layer: int) -> Tensor:
        """Return the clients' weights for a layer's gate: ``[N]``, or ``[N, E]`` for its rows."""
        return self.dense_weights(info)

    def expert_weights(
        self, info: RoundInfo, layer: int, expert: int, members: Sequence[int]
    ) -> Tensor:
        """Return weights ``[M]`` for the clients ``members`` that trained this expert.

        FedAvg averages over all clients: one that did not train the expert left it unchanged,
        so that its weight stays in the mean.
        """
        return self.dense_weights(info)[list(members)]

    def combine_expert(
        self, deltas: Tensor, info: RoundInfo, layer: int, expert: int, members: Sequence[int]
    ) -> Tensor:
        """Combine the members' changes ``deltas`` ``[M, P]`` into the global change ``[P]``."""
        return weighted_sum(self.expert_weights(info, layer, expert, members), deltas)

    def broadcast(self, info: RoundInfo) -> dict[str, Tensor]:
        """Return tensors to send to every client with the next round, by name."""
        return {}


def weighted_sum(weights: Tensor, deltas: Tensor | Sequence[Tensor]) -> Tensor:
    """Σ_i weights[i]·deltas[i], added in client order in float32.

    Args:
        weights: ``[N]``, or ``[N, R]`` for one weight a row when ``deltas`` is ``[N, R, ...]``.
        deltas: ``[N, ...]``, or N tensors of one shape.
    """
    if len(weights) != len(deltas):
        raise ValueError(f"weights of shape {list(weights.shape)} for {len(deltas)} clients")
    total = torch.zeros_like(deltas[0], dtype=torch.float32)
    for weight, delta in zip(weights.float(), deltas, strict=True):
        total += weight.reshape(weight.shape + (1,) * (delta.dim() - weight.dim())) * delta
    return total
