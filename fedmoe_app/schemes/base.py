"""Scheme: what one paper asks of the client and of the server, in one class.

A scheme is a frozen dataclass of hyper-parameters with pure hooks. A scheme that overrides
nothing is FedAvg (McMahan et al. 2017, arXiv:1602.05629): every trainable tensor is averaged with
weights n_i / Σ n. It does no I/O and never touches Flower.

Shapes: N clients in the round, M of them trained the expert at hand, L MoE layers, E experts a
layer, P parameters of one expert flattened over its tensors, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors, flatten
from fedmoe_app.schemes.sums import PairRule, cosines, dots, mean_of, norms, project, weighted_sum


@dataclass(frozen=True)
class LocalClient:
    """What a scheme may ask of the client that it runs on.

    Attributes:
        client: the client's number.
        shape: of the model.
        expert_budget: experts a layer that the node says it can train, 1 to E; None if it does not.
        usage: runs the received model over at most that many local examples and returns their
            routing statistics. It costs forward passes, so call it only if needed.
    """

    client: int
    shape: ModelShape
    expert_budget: int | None
    usage: Callable[[int], RoutingStats]


@dataclass(frozen=True)
class LocalStep:
    """What a client's training step offers to :meth:`Scheme.extra_loss`."""

    parameters: Mapping[str, Tensor]  # trainable tensors by key, with graph
    reference: Mapping[str, Tensor]  # the received values of the same tensors
    router_probs: Sequence[Tensor]  # per layer [T, E], with graph; empty unless asked for
    broadcast: Mapping[str, Tensor]  # what the server sent by :meth:`Scheme.broadcast`
    top_k: int  # experts a token uses


@dataclass(frozen=True)
class RoundInfo:
    """What the server knows of a round before it folds the updates, in client order."""

    server_round: int
    num_examples: Tensor  # [N] float32
    num_steps: Tensor  # [N] float32, optimiser steps
    routing: tuple[RoutingStats, ...]  # N entries of [L, E] tensors

    def routing_of(self, name: str, layer: int) -> Tensor:
        """Stack one routing statistic of one layer over the clients, ``[N, E]``."""
        return torch.stack([getattr(stats, name)[layer] for stats in self.routing])


@dataclass(frozen=True)
class ExpertUpdates:
    """The changes of one expert by the M clients that trained it, in client order.

    The changes may lie on the disk and are read when they are asked for: the sums below read one
    client's at a time, :attr:`deltas` all of them.
    """

    layer: int
    expert: int
    members: tuple[int, ...]  # M positions among the round's N clients
    changes: tuple[Mapping[str, Tensor], ...]  # M members' changes by the tensor's name
    values: Mapping[str, Tensor]  # the expert's global values, which fix the order of names
    info: RoundInfo
    pairs: PairRule

    @property
    def num_examples(self) -> Tensor:
        """The members' training examples, ``[M]``."""
        return self.info.num_examples[list(self.members)]

    @cached_property
    def deltas(self) -> Tensor:
        """The members' changes, flattened, ``[M, P]`` float32: all of them in memory."""
        return torch.stack([flatten(change, self.values) for change in self.changes])

    @cached_property
    def agreement(self) -> Tensor:
        """Cosines of the members' changes, ``[M, M]`` float64; worked out once.

        Beyond the limit of :attr:`pairs` they are those of random projections.
        """
        num_values = sum(value.numel() for value in self.values.values())
        if self.pairs.is_exact(len(self.members), num_values):
            return cosines(self.deltas)
        return cosines(project(self.rows, num_values, self.pairs))

    @cached_property
    def norms(self) -> Tensor:
        """‖Δ_i‖ of the members, ``[M]`` float64."""
        return norms(self.rows)

    def dots(self, vector: Tensor) -> Tensor:
        """⟨Δ_i, vector⟩ of the members with a vector ``[P]``, ``[M]`` float64."""
        return dots(self.rows, vector)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Σ_i weights[i]·Δ_i, ``[P]`` float32, for weights ``[M]``."""
        sums = {
            name: weighted_sum(weights, [change[name] for change in self.changes])
            for name in self.values
        }
        return flatten(sums, self.values)

    @property
    def rows(self) -> Sequence[Tensor]:
        """The members' changes, flattened: M vectors ``[P]``, each read when it is asked for."""
        if "deltas" in vars(self):
            return self.deltas.unbind()
        return _Rows(self.changes, self.values)

    def routing_of(self, name: str) -> Tensor:
        """Return one routing statistic of this expert by member, ``[M]`` (regions ``[M, D]``)."""
        stats = [self.info.routing[i] for i in self.members]
        return torch.stack([getattr(s, name)[self.layer, self.expert] for s in stats])


class _Rows(Sequence[Tensor]):
    """Changes ``[P]`` by member, each read and flattened anew when it is asked for."""

    def __init__(
        self, changes: Sequence[Mapping[str, Tensor]], values: Mapping[str, Tensor]
    ) -> None:
        self._changes, self._values = changes, values

    def __len__(self) -> int:
        return len(self._changes)

    def __getitem__(self, index: Any) -> Any:
        return flatten(self._changes[index], self._values)


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
            fedmoe_app.config.errors.ConfigError: naming the value and the allowed range.
        """

    def advice(self, shape: ModelShape) -> str:
        """Return what the server should say of this scheme on this model before the run, or ""."""
        return ""

    # -- on the client: what is trained --------------------------------------------------------

    def budget(self, client: LocalClient) -> int | None:
        """Return how many experts a layer this client may train; None if the scheme sets none."""
        return None

    def choose_experts(self, client: LocalClient) -> Sequence[Collection[int]] | None:
        """Choose the experts to train in this round, per layer; None trains all."""
        return None

    @property
    def chooses_per_round(self) -> bool:
        """Whether :meth:`choose_experts` chooses, so that a node can hold the chosen ones only."""
        return False

    @property
    def selects_per_batch(self) -> bool:
        """Whether :meth:`select_in_batch` narrows the choice in every training step."""
        return False

    def select_in_batch(self, probs: Tensor, routed: Tensor, client: LocalClient) -> Tensor:
        """Return which experts of a layer this batch trains, ``[E]`` bool; the others are frozen.

        Args:
            probs: p(x, e) of the batch's tokens, ``[T, E]`` float32, without graph.
            routed: whether a token of the batch goes to e, ``[E]`` bool.
            client: whose batch it is.
        """
        return routed

    # -- on the client: the local loss ---------------------------------------------------------

    @property
    def needs_router_probs(self) -> bool:
        """Whether :meth:`extra_loss` reads ``router_probs``."""
        return False

    @property
    def needs_regions(self) -> bool:
        """Whether the server reads ``region``, the largest of the routing statistics."""
        return False

    def extra_loss(self, step: LocalStep) -> Tensor | None:
        """Return a scalar to add to the task's loss in every step, or None."""
        return None

    # -- on the client: what it keeps between rounds -------------------------------------------

    @property
    def keeps_state(self) -> bool:
        """Whether :meth:`keep` returns anything, so that the node has to store it."""
        return False

    def needs_client_number(self, has_budget: bool) -> bool:
        """Whether clients must have numbers that outlive their process (``partition-id``).

        Args:
            has_budget: whether the node names an ``expert-budget`` of its own.
        """
        return self.keeps_state

    @property
    def stale_fault(self) -> str:
        """Why changes that started from an older global state cannot be folded, or "" if they can.

        A client that starts from what it kept sends changes that hold the way from the global state
        to its own: added to a newer state they would count it twice.
        """
        if self.keeps_state and not self.personal_copy:
            return (
                "this scheme's clients start from what they kept and not from the global state, so "
                "that their changes only fit the state they were sent; switch that off (fedalign: "
                'gates = "consistency" or "average"; fcmoe: retention = "none")'
            )
        return ""

    @property
    def personal_copy(self) -> bool:
        """Whether each client keeps a second model of its own beside the global one."""
        return False

    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Return the values that local training starts from; called only if something was kept.

        Args:
            received: the global values; do not write to them.
            kept: what :meth:`keep` returned in the client's last round.
        """
        return received

    def keep(self, received: ModelState, changes: ModelState) -> Tensors:
        """Return what the node keeps for the client's next round, by names of the scheme's own.

        Args:
            received: the global values that this round started from.
            changes: local − received: all gates and dense tensors, and the trained experts.
        """
        return {}

    # -- on the server -------------------------------------------------------------------------

    def dense_weights(self, info: RoundInfo) -> Tensor:
        """Return the clients' weights for the dense tensors, ``[N]``."""
        return info.num_examples / info.num_examples.sum()

    def gate_weights(self, info: RoundInfo, layer: int) -> Tensor:
        """Return the clients' weights for a layer's gate: ``[N]``, or ``[N, E]`` for its rows."""
        return self.dense_weights(info)

    def gate_scale(self, info: RoundInfo, layer: int) -> float:
        """Return the factor on the gate's old values: gate ← scale·gate + Σ weights·changes."""
        return 1.0

    def expert_shares(self, info: RoundInfo, layer: int) -> Tensor:
        """Return what each client counts in the mean of an expert's changes, ``[N, E]``.

        Row i goes by client i's own examples and statistics, whoever else is in the round: the
        server then need not keep its reply until all are in.
        """
        num_experts = info.routing[0].count.shape[1]
        return info.num_examples.unsqueeze(1).expand(-1, num_experts)  # [N, E]

    @property
    def absent_count(self) -> bool:
        """Whether the clients that did not train an expert count in its mean, as unchanged.

        FedAvg averages over all clients.
        """
        return True

    def expert_weights(self, updates: ExpertUpdates) -> Tensor:
        """Return the members' weights for an expert, ``[M]``: their part of all shares.

        Override this where a weight depends on the other clients, too. A scheme that reads no
        changes here, only ``updates.info`` and statistics, costs the server the same memory for
        any number of clients.
        """
        shares = self.expert_shares(updates.info, updates.layer)[:, updates.expert]  # [N]
        members = shares[list(updates.members)]
        return mean_of(members.clone(), shares if self.absent_count else members)

    @property
    def means_of_experts(self) -> bool:
        """Whether an expert's change is the mean by :meth:`expert_shares` and nothing more."""
        own = type(self)
        return (
            own.expert_weights is Scheme.expert_weights
            and own.combine_expert is Scheme.combine_expert
        )

    def combine_expert(self, updates: ExpertUpdates) -> Tensor:
        """Combine the members' changes of an expert into the global change, ``[P]``."""
        return updates.weighted_sum(self.expert_weights(updates))

    def broadcast(self, info: RoundInfo) -> dict[str, Tensor]:
        """Return tensors to send to every client with the next round, by name."""
        return {}

    # -- what a researcher looks at ------------------------------------------------------------

    def diagnose(self, info: RoundInfo) -> dict[str, Any]:
        """Return numbers of the round for ``metrics.jsonl``: tensors or lists by name."""
        return {}

    def diagnose_expert(self, updates: ExpertUpdates, change: Tensor) -> dict[str, Any]:
        """Return numbers of one expert: scalars, or a tensor ``[M]`` or ``[M, M]`` of its members.

        Args:
            updates: what was combined.
            change: what :meth:`combine_expert` made of it, ``[P]``.
        """
        return {}
