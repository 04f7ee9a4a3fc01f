"""FC-MoE: conflict-aware aggregation of experts.

Lu et al., "Conflict-Aware Federated Fine-Tuning of Large Language Models with Mixture-of-Experts",
arXiv:2606.15625. Per expert e, over the N clients that trained it:

    1. w_i = c_i / Σ_j c_j,   c_i = count_i·‖Δ_i‖                         importance
    2. Δ̄ = Σ_i w_i·Δ_i                                                    consensus
    3. if ⟨Δ_i, Δ̄⟩ < 0:  Δ_i ← Δ_i − (⟨Δ_i, Δ̄⟩/‖Δ̄‖²)·Δ̄                    projection
    4. θ ← θ + Σ_i w_i·Δ_i                                                with the projected Δ_i
    5. θ_local = θ + λ·R                                                  retention, λ = 0.5

Steps 2 to 4 never change the direction: Σ_i w_i·Δ_i^proj = (1+κ)·Δ̄ with
κ = −Σ_{i conflicting} w_i·⟨Δ_i, Δ̄⟩/‖Δ̄‖² ≥ 0. So one dot product a client is enough.

Decisions: the paper prints R as the projection of the client's own last Δ on θ (mode "paper"), and
describes it as what the projection removed (mode "filtered"). Only the direction of Δ̄ matters to
the latter, and that is the direction of θ's change, which the client has. Gates and dense tensors,
on which the paper is silent, go by n_i.

Step 3 is not continuous where the updates cancel: two opposite updates of weights 1/2 + ε and
1/2 − ε give about half of the heavier one, and equal weights give 0. A consensus so small that it
is rounding error (below 1e-6 of Σ_i w_i·‖Δ_i‖) therefore has no direction to project on.

Shapes: N clients, P parameters of one expert. Norms and dot products run in float64, sums over
clients in float32 in client order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors, expert_name, flatten, unflatten
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Client, ExpertProbe, Mean, Server, Start, Weighted
from fedmoe_app.schemes.sums import dots, norms, shares, weighted_sum
from fedmoe_app.schemes.views import BlockUpdates, Trained

RETENTION_MODES = ("paper", "filtered")
NO_RETENTION = "none"
CANCELLED = 1e-6  # ‖Δ̄‖ / Σ_i w_i·‖Δ_i‖ at and below which Δ̄ is rounding error


def importance(counts: Tensor, deltas: Tensor) -> Tensor:
    """w_i = count_i·‖Δ_i‖ / Σ_j count_j·‖Δ_j‖ (step 1), ``[N]`` float32.

    Args:
        counts: tokens that client i routed to the expert, ``[N]``.
        deltas: the clients' changes of the expert, ``[N, P]``.

    Returns:
        Weights that sum to 1, or zeros if no client has both tokens and a change.
    """
    return _importance(counts, norms(deltas))


def consensus_update(
    deltas: Tensor, counts: Tensor, *, weights: Tensor | None = None, project: bool = True
) -> Tensor:
    """Combine the clients' changes into the global one (steps 1 to 4), ``[P]`` float32.

    The norm is at most Σ_i w_i·‖Δ_i‖. All-zero changes, changes that nobody routed a token for
    and N = 0 give zeros; one client gives its own change.

    Args:
        deltas: the clients' changes of the expert, ``[N, P]``.
        counts: tokens that client i routed to the expert, ``[N]``.
        weights: weights ``[N]`` ≥ 0 in place of :func:`importance` (ablation "no importance").
        project: False leaves step 3 out (ablation "no projection").
    """
    if len(deltas) == 0:
        return torch.zeros(deltas.shape[1], device=deltas.device)
    if weights is None:
        weights = importance(counts, deltas)
    consensus = weighted_sum(weights, deltas)  # [P]
    if not project:
        return consensus
    return consensus * (1 + _gain(weights, norms(deltas), dots(deltas, consensus), consensus))


def retention(own_delta: Tensor, global_old: Tensor, global_new: Tensor, mode: str) -> Tensor:
    """R of step 5, without λ, ``[P]`` float32.

    Mode "filtered" is what step 3 removed from the client's change, Δ − Δ^proj: a multiple of
    θ_new − θ_old that points against it, or zero for a change that did not conflict. Mode "paper"
    is the projection of Δ on θ_new, as printed; with a small learning rate it is close to zero.
    Zero vectors give zeros. ‖R‖ is at most ‖Δ‖.

    Args:
        own_delta: the client's last change of the expert, Δ, ``[P]``.
        global_old: the expert that this change started from, ``[P]``.
        global_new: the expert that came back, ``[P]``.
        mode: "paper" or "filtered".

    Raises:
        ValueError: if the mode is neither.
    """
    if mode == "paper":
        return _projection(own_delta, global_new).float()
    if mode != "filtered":
        raise ValueError(
            f'retention = "{mode}": unknown; choose one of {", ".join(RETENTION_MODES)}'
        )
    direction = global_new.double() - global_old.double()
    if own_delta.double() @ direction >= 0:
        return torch.zeros_like(own_delta, dtype=torch.float32)
    return _projection(own_delta, direction).float()


def _importance(counts: Tensor, lengths: Tensor) -> Tensor:
    """Step 1 from the norms ‖Δ_i‖, ``[N]`` float64."""
    return shares(counts.double() * lengths).float()


def _gain(weights: Tensor, lengths: Tensor, products: Tensor, consensus: Tensor) -> float:
    """κ ≥ 0 of the identity above: by how much step 3 lengthens the consensus.

    Args:
        weights: of the clients, ``[N]``.
        lengths: ‖Δ_i‖, ``[N]`` float64.
        products: ⟨Δ_i, Δ̄⟩, ``[N]`` float64.
        consensus: Δ̄, ``[P]``.
    """
    direction = consensus.double()  # [P]
    if direction.norm() <= CANCELLED * (weights.double() @ lengths):
        return 0.0
    conflicts = (products / (direction @ direction)).clamp_max(0)  # [N]
    return abs(float(weights.double() @ conflicts))  # no -0.0


def _projection(vector: Tensor, onto: Tensor) -> Tensor:
    """(⟨v, u⟩/‖u‖²)·u, ``[P]`` float64; zeros for u = 0."""
    axis = onto.double()
    squared = axis @ axis
    if squared == 0:
        return torch.zeros_like(axis)
    return (vector.double() @ axis) / squared * axis


@dataclass(frozen=True)
class Consensus(Weighted):
    """Experts: steps 1 to 4, each of which can be left out.

    Attributes:
        by_importance: False weighs the clients that trained an expert by n_i.
        project: False leaves step 3 out.
    """

    by_importance: bool = True
    project: bool = True

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return the importance weights (step 1), or n_i's, over the members, ``[M]``."""
        if not self.by_importance:
            return updates.by_examples
        return _importance(updates.routing_of("count"), updates.norms)

    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return the consensus of the members' changes (steps 2 to 4), ``[P]``.

        It reads the changes of one member at a time, three times.
        """
        weights = self.weights(updates)
        consensus = updates.weighted_sum(weights)  # [P]
        return consensus * (1 + _kappa(updates, weights, consensus)) if self.project else consensus


def _kappa(updates: BlockUpdates, weights: Tensor, consensus: Tensor) -> float:
    return _gain(weights, updates.norms, updates.dots(consensus), consensus)


@dataclass(frozen=True)
class Kappa(ExpertProbe):
    """Tells κ, whether or not the projection is switched on."""

    of: str = "experts"
    rule: Consensus = Consensus()

    def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
        """Return κ, and the weights that it belongs to."""
        weights = self.rule.weights(updates)
        kappa = _kappa(updates, weights, updates.weighted_sum(weights))
        return {"kappa": kappa, "expert_weights": weights}


@dataclass(frozen=True)
class Retention(Start):
    """Step 5: experts start from θ + λ·R.

    Attributes:
        mode: "paper" or "filtered".
        lam: λ.
    """

    mode: str = "paper"
    lam: float = 0.5

    def keep(self, done: Trained) -> Tensors:
        """Keep the own change of every trained expert, and what it started from."""
        kept = {}
        for key, tensors in done.changes.experts.items():
            for name, change in tensors.items():
                kept[f"change.{expert_name(*key, name)}"] = change
                kept[f"start.{expert_name(*key, name)}"] = done.received.experts[key][name]
        return kept

    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Add λ·R to the experts that the client trained in its last round.

        A client that was left out of rounds in between takes the global change of all of them as
        the direction of the consensus: it has no other.
        """
        own, old = _unpack(kept, "change."), _unpack(kept, "start.")
        experts = dict(received.experts)
        for key, change in own.experts.items():
            values = received.experts[key]
            retained = retention(
                flatten(change, values),
                flatten(old.experts[key], values),
                flatten(values, values),
                self.mode,
            )
            parts = unflatten(self.lam * retained, values)
            experts[key] = {name: value + parts[name] for name, value in values.items()}
        return ModelState(received.dense, received.gates, experts)


@dataclass(frozen=True)
class FCMoE(Scheme):
    """FC-MoE; every component can be switched off (the paper's Table II).

    Attributes:
        importance: False weighs the clients that trained an expert by n_i.
        projection: False leaves step 3 out.
        retention: "paper", "filtered" or "none".
        lam: λ of step 5.
    """

    importance: bool = True
    projection: bool = True
    retention: str = "paper"
    lam: float = 0.5

    @classmethod
    def from_config(cls, config: RunConfig) -> FCMoE:
        """Take the ``fcmoe`` table."""
        return cls(**config.fcmoe.model_dump())

    def client(self, model: ModelShape) -> Client:
        """Retain, which needs the client's own last change."""
        retains = self.retention != NO_RETENTION and self.lam > 0
        return Client(start_experts=Retention(self.retention, self.lam) if retains else None)

    def server(self, model: ModelShape) -> Server:
        """Combine experts by consensus; without importance and projection it is a mean."""
        consensus = Consensus(self.importance, self.projection)
        is_mean = not (self.importance or self.projection)
        return Server(
            experts=Mean("members") if is_mean else consensus, probes=(Kappa(rule=consensus),)
        )


def _unpack(kept: Mapping[str, Tensor], prefix: str) -> ModelState:
    """Return the tensors kept under a prefix, by the parts of the model."""
    state = ModelState()
    for name, tensor in kept.items():
        if name.startswith(prefix):
            state.insert(name.removeprefix(prefix), tensor)
    return state
