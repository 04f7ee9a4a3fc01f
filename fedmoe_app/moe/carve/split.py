"""Split one feed-forward layer: who is shared, who goes together, and who is asked.

Shapes: T tokens, D hidden size, N neurons of the dense layer, E experts of I neurons each, k of
them chosen for a token. A neuron is a row of the gate and up projections with its column of the
down projection; its activation is ``act(x · gate) * (x · up)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedmoe_app.moe.carve.plan import Plan, Sizes

SHARED = -1  # label of a neuron of the shared expert
_GROUPING_TOKENS = 4000  # of which co-activation is counted
_ROUNDS = 8  # of k-means, at most


@dataclass(frozen=True)
class Layout:
    """How a layer is divided.

    Attributes:
        label: the expert of each neuron ``[N]``, :data:`SHARED` for the shared one.
        router: ``[E, D]``.
    """

    label: Tensor
    router: Tensor

    def neurons(self, expert: int) -> Tensor:
        """Return the neurons of an expert in ascending order ``[I]``."""
        return (self.label == expert).nonzero().flatten()


def lay_out(x: Tensor, act: Tensor, down: Tensor, plan: Plan, sizes: Sizes) -> Layout:
    """Divide a layer's neurons and give it a router.

    Args:
        x: the layer's inputs ``[T, D]``.
        act: the neurons' activations ``[T, N]``.
        down: the down projection ``[D, N]``.
        plan, sizes: what to make of it.
    """
    weight = act.abs() * down.norm(dim=0)  # what each neuron adds to the output at most
    # The first token of a text has activations a hundred times those of others: all count alike.
    share = (weight / weight.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)
    shared = share.argsort(descending=True, stable=True)[: sizes.shared]
    label = torch.zeros(len(share), dtype=torch.long)
    label[shared] = SHARED
    rest = (label != SHARED).nonzero().flatten()
    generator = torch.Generator().manual_seed(plan.seed)
    few = torch.randperm(len(x), generator=generator)[:_GROUPING_TOKENS]
    label[rest] = co_activated(weight[few][:, rest], plan.experts, generator)
    target = (act @ down.T).norm(dim=1, keepdim=True).clamp_min(1e-6)
    groups = [(label == e).nonzero().flatten() for e in range(plan.experts)]
    added = [(act[:, g] @ down[:, g].T).norm(dim=1) for g in groups]
    router = regressed_router(x, torch.stack(added, 1) / target)
    if plan.balance:
        router = levelled(x, router, plan.top_k)
    spread = (x @ router.T).std().clamp_min(1e-12)
    return Layout(label, router * (plan.router_scale / spread))


def co_activated(weight: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Divide neurons into groups of equal size that are active on the same tokens.

    Balanced k-means: a neuron is the unit vector of the tokens among whose strongest eighth it is;
    each round assigns all of them at once so that the sum of their likenesses to the centres is
    the largest that equal groups allow.

    Args:
        weight: how strong a neuron is on a token ``[T, N]``; N a multiple of ``groups``.
        groups: how many.
        generator: draws the neurons that are the first centres.

    Returns:
        The group of each neuron ``[N]``.
    """
    tokens, count = weight.shape
    size = count // groups
    strongest = weight.topk(max(1, count // 8), 1).indices
    points = F.normalize(torch.zeros(tokens, count).scatter_(1, strongest, 1.0).T, dim=1)  # [N, T]
    centres = points[torch.randperm(count, generator=generator)[:groups]]
    label = torch.full((count,), -1)
    for _ in range(_ROUNDS):
        likeness = (points @ centres.T).repeat_interleave(size, 1)  # a column a place in a group
        _, place = linear_sum_assignment(likeness.numpy(), maximize=True)
        before, label = label, torch.from_numpy(place) // size
        if torch.equal(before, label):
            break
        centres = F.normalize(
            torch.stack([points[label == g].mean(0) for g in range(groups)]), dim=1
        )
    return label


def regressed_router(x: Tensor, added: Tensor) -> Tensor:
    """Predict linearly how much each expert would add to the output; a ridge regression.

    Args:
        x: ``[T, D]``.
        added: norm of each expert's part of the output relative to the whole ``[T, E]``.

    Returns:
        The router ``[E, D]``.
    """
    top = added.flatten().sort().values[int(0.99 * added.numel())]
    added = added.clamp_max(top)  # a few tokens with an output near zero would decide all
    x = x.double()
    second = x.T @ x
    ridge = 0.01 * second.diagonal().mean()
    left = second + ridge * torch.eye(len(second), dtype=second.dtype)
    return torch.linalg.solve(left, x.T @ (added - added.mean(0)).double()).T.float()


def levelled(x: Tensor, router: Tensor, top_k: int) -> Tensor:
    """Shift each row of the router along the mean input until the experts are used alike.

    For inputs near their mean such a shift is a bias, which routers of these families lack. The
    steps have the sign and size of how far an expert is from its equal share, as in the balancing
    without a loss of DeepSeek-V3 (Wang et al., arXiv 2408.15664).
    """
    mean = x.mean(0)
    direction, logits = mean / mean.dot(mean).clamp_min(1e-12), x @ router.T
    along, bias = x @ direction, torch.zeros(len(router))
    step = 0.1 * float(logits.std())
    for i in range(100):
        chosen = (logits + along[:, None] * bias).topk(top_k, -1).indices
        load = torch.bincount(chosen.flatten(), minlength=len(router)) / chosen.numel()
        bias += step * 0.95**i * (1 - load * len(router))
    return router + bias[:, None] * direction


def routed(x: Tensor, router: Tensor, top_k: int) -> Tensor:
    """Return the weights of the experts ``[T, E]``: softmax, the k largest, made to sum to 1."""
    value, index = (x @ router.T).softmax(-1).topk(top_k, -1)
    value = value / value.sum(-1, keepdim=True)
    return torch.zeros(len(x), len(router)).scatter_(1, index, value)


def seen_by_down(act: Tensor, layout: Layout, weights: Tensor, top_k: int) -> Tensor:
    """Return the activations as the MoE layer's down projections see them ``[T, N]``.

    Those of a routed expert are multiplied by its weight and by k, so that equal weights of all
    experts, with k = E, are the dense layer.
    """
    factor = torch.ones_like(act)
    routed_neurons = layout.label != SHARED
    factor[:, routed_neurons] = weights[:, layout.label[routed_neurons]] * top_k
    return act * factor


def refitted(seen: Tensor, target: Tensor, down: Tensor, ridge: float) -> Tensor:
    """Solve the down projections anew: ridge regression towards the dense ones.

    Minimises the sum over tokens of the squared relative error, plus ``ridge`` times the squared
    change of each column, in units of the mean square of its neuron.

    Args:
        seen: the activations that the down projections see ``[T, N]``.
        target: the dense layer's outputs ``[T, D]``.
        down: the dense down projection ``[D, N]``.
        ridge: strength.
    """
    trust = 1 / target.norm(dim=1, keepdim=True).clamp_min(1e-6)
    a, y = seen * trust, target * trust
    square = (a * a).mean(0).double()
    pull = ridge * square.clamp_min(float(square.mean()) * 1e-3) * len(a)
    left = (a.T @ a).double() + pull.diag()
    right = (a.T @ y).double() + pull[:, None] * down.T.double()
    return torch.linalg.solve(left, right).T.float()


def relative_error(output: Tensor, target: Tensor) -> float:
    """Return the mean over tokens of ‖output − target‖ / ‖target‖."""
    size = target.norm(dim=1).clamp_min(1e-6)
    return float(((output - target).norm(dim=1) / size).mean())
