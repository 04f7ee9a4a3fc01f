"""Merging of linear maps by what goes into them: diagonal Gram matrices as weights.

With x the inputs of a linear map W ``[out, in]`` at client i while it trains (of an expert: of the
tokens that are routed to it), w_i = n_i/Σn, and ρ the shrinkage,

    g_ij = Σ_x x_j²                             τ = mean over j of Σ_i g_ij
    Δ_:j = Σ_i (g_ij + ρ·τ·w_i)·Δ_i,:j / (Σ_i g_ij + ρ·τ)

minimises Σ_i ‖(Δ − Δ_i)·X_i‖² + ρτ·Σ_i w_i·‖Δ − Δ_i‖², with XXᵀ taken as diagonal. An input
direction that a client's tokens never excite does not dilute the change of those who excite it:
disjoint inputs add their changes up, equal ones average them. ρ → ∞ is FedAvg.

RegMean: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
arXiv:2212.09849, with whole Gram matrices, once, after training. LoRM: Salami et al.,
"Closed-form merging of parameter-efficient modules for Federated Continual Learning", ICLR 2025,
arXiv:2410.17961, whose code takes the diagonal for all but the head. Neither has experts: that the
tokens of an expert are those routed to it is ours, and unproven.

Decisions: the diagonal, d numbers a map, where the whole matrix would be as large as the map. g_ij
is a sum, so that it holds how much an expert is used. A client that did not train an expert has
g = 0 there, and still counts in τ's part, as under FedAvg. The rule holds for all linear maps that
are trained, attention and head as well, and for LoRA's A (inputs x) and B (inputs A·x): experts
that follow few clients while all else follows all of them lost accuracy under other weights.
Embeddings, norms, biases and gates go by examples. Δ and g are taken from the training steps, so
no pass over the data is added. Everything is a sum over clients: replies do not wait. Under the
guard a client's inputs, Σ_j g_ij of a map, over the experts of a layer together, are no more than
so many times the median client's; where most sent none for a map, none count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors, expert_name, expert_of
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import ExpertProbe, Field, OfInputs, Scaled, Server, Summed
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import Block, BlockUpdates, Reply

BUILT_IN = {"grammerge": "GramMerge"}

_LARGEST = 1e15  # of a sum of squares


@dataclass(frozen=True)
class GramDiagonal(OfInputs):
    """g of every linear map that is trained."""

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """One number an input; any matrix may be a linear map, and only these are sent."""
        return {
            key: Field((shape[1],), 0, _LARGEST, optional=True, mass=_mass_of(key))
            for key, shape in shapes.items()
            if len(shape) == 2
        }

    def of_inputs(self, key: str, x: Tensor) -> Tensors:
        """Return Σ x², ``[in]``."""
        return {key: x.square().sum(dim=0)}


def _mass_of(key: str) -> str:
    """Name what a map's inputs are a part of: those of one map of a layer, over all its experts.

    A layer's experts share its tokens, so that what one of them gets says little of a client; all
    of them get about as much as there are tokens.
    """
    place = expert_of(key)
    if place is None:
        return key
    return f"layers.{place[0]}.experts: {key.removeprefix(expert_name(*place, ''))}"


GRAM = GramDiagonal()


@dataclass(frozen=True)
class GramWeighted(Summed):
    """Δ of the module's equation; the mean by examples where nobody sent a g.

    Attributes:
        rho: ρ.
        gram: g.
    """

    rho: float = 1.0
    gram: GramDiagonal = GRAM

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add n_i, and n_i·Δ_i, g_i and g_i·Δ_i of every tensor."""
        n = reply.num_examples
        sums: dict[str, Scaled | float] = {"of": n}
        for name, change in (reply.change(block) or {}).items():
            sums[f"mean.{name}"] = Scaled(n, change)
            g = reply.measured(self.gram, block.name(name))
            if g is not None:
                sums[f"gram.{name}"] = Scaled(1.0, g)
                sums[f"by.{name}"] = Scaled(1.0, change * g)
        return sums

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Divide, column by column."""
        changes: Tensors = {}
        for name in (key[5:] for key in sums if key.startswith("mean.")):
            mean = sums[f"mean.{name}"].div_(sums["of"])
            g = sums.get(f"gram.{name}")
            tau = 0.0 if g is None else float(g.mean())
            if g is None or not tau:
                changes[name] = mean
            else:
                shrunk = mean.mul_(self.rho * tau).add_(sums[f"by.{name}"])
                changes[name] = shrunk.div_(g + self.rho * tau)
        return changes


@dataclass(frozen=True)
class GramShares(ExpertProbe):
    """What each member weighs in an expert: its share, as the mean over all inputs of all maps."""

    rho: float = 1.0
    gram: GramDiagonal = GRAM
    of: str = "experts"

    def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
        """Return the shares; with those of who did not train the expert their sum is 1."""
        examples = updates.info.num_examples
        weights = (updates.num_examples / examples.sum())[:, None]  # [M, 1]
        found = []
        for name in updates.values:
            key = updates.block.name(name)
            sent = [updates.replies[i].measured(self.gram, key) for i in updates.members]
            grams = [g for g in sent if g is not None]
            if len(grams) == len(sent):
                g = torch.stack(grams)  # [M, in]
                shrink = self.rho * g.sum(dim=0).mean()
                found.append((g + shrink * weights) / (g.sum(dim=0) + shrink))
        if not found:
            return {}
        return {"expert_weights": torch.cat(found, dim=1).nan_to_num().mean(dim=1)}


@dataclass(frozen=True)
class GramMerge(Scheme):
    """FedAvg with linear maps merged by their inputs.

    Attributes:
        rho: ρ; the larger, the nearer to FedAvg.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("grammerge", rho=(self.rho, 0, None))

    def server(self, model: ModelShape) -> Server:
        """Merge all but gates."""
        rule = GramWeighted(self.rho)
        return Server(dense=rule, experts=rule, probes=(GramShares(self.rho),))
