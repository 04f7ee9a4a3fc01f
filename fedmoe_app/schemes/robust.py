"""Robust aggregation: rules that a few hostile or broken clients cannot carry off.

By client, on what all clients train: :class:`GeometricMedian`, :class:`TrustedClip`, :class:`Krum`,
:class:`FLTrust`; docs/schemes/robust.md has their equations. By block (a dense tensor, a gate, an
expert), over its M members with equal weights:

    median          by value, the middle one; of an even number, the mean of the two middle ones
    trimmedmean     by value, the mean without the ⌊β·M⌋ lowest and highest
                    Yin et al., ICML 2018, arXiv:1803.01498
    multikrum       the mean of the ``keep`` changes with the smallest sum of squared distances to
                    their M − f − 2 nearest;  Blanchard et al., NeurIPS 2017, arXiv:1703.02757
    centredclip     v ← v + (1/M)·Σ_i (Δ_i − v)·min(1, r/‖Δ_i − v‖), a few times
                    Karimireddy et al., ICML 2021, arXiv:2012.10333

Decisions. Every block has its own members, since a client trains some experts only; so rules choose
by block, not by client. An expert with one or two members has their plain mean: nothing tells the
honest one. Krum's distances come from norms and cosines, which are projected for very many clients.
Centred clipping starts from the median and not from the last round's result, and r is ``radius``
times the median of ‖Δ_i − v‖: changes of experts differ in size by orders of magnitude.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import (
    ROOT_CHANGE,
    Admit,
    Mean,
    RootChange,
    Rule,
    Server,
    Signal,
    Telling,
    Together,
    Weighted,
)
from fedmoe_app.schemes.ranges import in_range, whole
from fedmoe_app.schemes.views import BlockUpdates, Now, SharedUpdates

BUILT_IN = {
    "median": "Median",
    "trimmedmean": "TrimmedMean",
    "multikrum": "MultiKrum",
    "centredclip": "CentredClipping",
    "geometricmedian": "GeometricMedian",
    "trustedclip": "TrustedClip",
    "krum": "Krum",
    "fltrust": "FLTrust",
}

logger = logging.getLogger("fedmoe")


@dataclass(frozen=True)
class Trimmed(Together):
    """The mean by value without the lowest and highest; ``share = 0.5`` is the median."""

    share: float = 0.2

    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return it, ``[P]``."""
        return trimmed_mean(updates.deltas, self.share)


def trimmed_mean(deltas: Tensor, share: float) -> Tensor:
    """Return the mean of ``[M, P]`` by value without ⌊share·M⌋ at either end, ``[P]``."""
    cut = min(int(share * len(deltas)), (len(deltas) - 1) // 2)
    return deltas.sort(dim=0).values[cut : len(deltas) - cut].mean(dim=0)


@dataclass(frozen=True)
class NearMost(Weighted):
    """Multi-Krum.

    Attributes:
        bad: f, clients that may be hostile.
        keep: changes that are averaged; 0 is M − f.
    """

    bad: int = 1
    keep: int = 0

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return 1/keep for those that are kept, ``[M]``."""
        count = len(updates.members)
        if count <= 2:
            return torch.full((count,), 1 / count)
        squares = updates.norms.square()  # [M]
        products = updates.cosines * torch.outer(updates.norms, updates.norms)
        distances = (squares[:, None] + squares - 2 * products).clamp_min(0)  # [M, M]
        chosen = nearest(distances, self.bad, self.keep)
        return torch.zeros(count).index_fill(0, chosen, 1 / len(chosen))


@dataclass(frozen=True)
class TooFew(Telling):
    """Warns once a round of fewer members than Krum's guarantee needs, M ≥ 2f + 3; tells nothing.

    Attributes:
        bad: f.
    """

    bad: int = 1

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Look at the block with the fewest members; experts that nobody trained are none."""
        least, needed = now.num_clients, 2 * self.bad + 3
        if now.info.routing:
            members = torch.stack([stats.trained > 0 for stats in now.info.routing]).sum(dim=0)
            least = min([least, *members[members > 0].tolist()])  # members: [L, E]
        if least < needed:
            logger.warning(
                "round %d: multikrum: %d members in a block, and bad = %d needs at least 2·bad + 3 "
                "= %d for its guarantee; have more clients train each expert, or set a smaller bad",
                *(now.info.server_round, least, self.bad, needed),
            )
        return {}


@dataclass(frozen=True)
class CentredClip(Together):
    """Centred clipping.

    Attributes:
        radius: r, as a multiple of the median distance from the centre.
        iterations: how often the centre moves.
    """

    radius: float = 1.0
    iterations: int = 3

    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return the centre, ``[P]``."""
        deltas = updates.deltas
        if len(deltas) <= 2:
            return deltas.mean(dim=0)
        centre = trimmed_mean(deltas, 0.5)
        for _ in range(self.iterations):
            away = deltas - centre  # [M, P]
            lengths = torch.linalg.vector_norm(away, dim=1, dtype=torch.float64)  # [M]
            most = self.radius * lengths.median()
            scale = (most / lengths.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)
            centre = centre + (scale.float().unsqueeze(1) * away).mean(dim=0)
        return centre


# -- decided by client, on what all of them train ----------------------------------------------


@dataclass(frozen=True)
class NearCentre(Admit):
    """Clients by their weight in the geometric median of the shared parts.

    Weiszfeld's steps on inner products: a_i ← (w_i/‖Δ_i − Σ_j a_j·Δ_j‖) / Σ,  w_i = n_i/Σn.

    Attributes:
        iterations: how many.
    """

    iterations: int = 12

    def admit(self, shared: SharedUpdates) -> Tensor:
        """Return a_i/w_i, ``[N]``."""
        given = _by_examples(shared)
        return (geometric_median(shared.gram, given, self.iterations) / given).float()


@dataclass(frozen=True)
class ClippedToCentre(Admit):
    """Clients by their weight in a centre that clips them: those far from it have less.

    v ← v + Σ_i w_i·s_i·(Δ_i − v) with s_i = min(1, r/‖Δ_i − v‖), from the geometric median on. v
    stays a weighted mean of the Δ_i, whose weights are what is returned.

    Attributes:
        radius: r, as a multiple of the median distance.
        iterations: how often the centre moves.
    """

    radius: float = 1.0
    iterations: int = 3

    def admit(self, shared: SharedUpdates) -> Tensor:
        """Return a_i/w_i, ``[N]``."""
        given = _by_examples(shared)
        centre = geometric_median(shared.gram, given)
        for _ in range(self.iterations):
            lengths = distances_to(shared.gram, centre)
            scale = given * (self.radius * lengths.median() / lengths).clamp_max(1)
            centre = centre * (1 - scale.sum()) + scale
        return (centre / given).float()


@dataclass(frozen=True)
class NearOthers(Admit):
    """Multi-Krum over the shared parts as a whole.

    Attributes:
        bad, keep: of :class:`NearMost`.
    """

    bad: int = 1
    keep: int = 0

    def admit(self, shared: SharedUpdates) -> Tensor:
        """Return 1 for those that are kept, 0 for the others, ``[N]``."""
        chosen = nearest(shared.distances, self.bad, self.keep)
        return torch.zeros(len(shared.replies)).index_fill(0, chosen, 1.0)


@dataclass(frozen=True)
class LikeRoot(Admit):
    """Clients by how far they go the way of the server's own training.

    Attributes:
        root: that training's change.
    """

    root: RootChange = ROOT_CHANGE

    def admit(self, shared: SharedUpdates) -> Tensor:
        """Return max(0, cos(Δ_i, Δ_0))/w_i, ``[N]``: n_i, which a client makes up, cancels.

        Raises:
            ValueError: no client goes that way at all, or the server's training changed nothing.
        """
        lengths = shared.norms * shared.root_norm
        cosines = shared.root_dots / lengths.where(lengths > 0, 1.0)
        trust = cosines.clamp(0, 1)
        if not bool((trust > 0).any()):
            raise ValueError(
                "no client's change goes the way of the server's own training (the largest cosine "
                f"is {float(cosines.max()):.3g}); are the server's rows of the clients' task?"
            )
        return (trust / _by_examples(shared)).float()

    def scale(self, shared: SharedUpdates) -> Tensor:
        """Return ‖Δ_0‖/‖Δ_i‖, ``[N]``; 1 for a change of nothing."""
        lengths = shared.norms
        return (shared.root_norm / lengths.where(lengths > 0, shared.root_norm or 1.0)).float()


def geometric_median(gram: Tensor, weights: Tensor, iterations: int = 12) -> Tensor:
    """Return a of the point Σ_i a_i·v_i with the least Σ_i w_i·‖v_i − ·‖, ``[N]`` float64, sum 1.

    Args:
        gram: ⟨v_i, v_j⟩, ``[N, N]`` float64.
        weights: w > 0, ``[N]`` float64, sum 1.
        iterations: of Weiszfeld's algorithm; each comes nearer.
    """
    found = weights
    for _ in range(iterations):
        closer = weights / distances_to(gram, found)
        found = closer / closer.sum()
    return found


def distances_to(gram: Tensor, weights: Tensor) -> Tensor:
    """Return ‖v_i − Σ_j a_j·v_j‖, ``[N]`` float64, at least a millionth of the largest ‖v_i‖."""
    squares = gram.diagonal()
    least = 1e-12 * float(squares.max()) or 1.0
    found = squares - 2 * gram @ weights + weights @ gram @ weights
    return found.clamp_min(least).sqrt()


def nearest(distances: Tensor, bad: int, keep: int) -> Tensor:
    """Return Multi-Krum's choice among M vectors: positions of those that are kept.

    Args:
        distances: squared, ``[M, M]``.
        bad: f, vectors that may be hostile.
        keep: how many are kept; 0 is M − f.
    """
    count = len(distances)
    others = distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    near = others[:, : max(1, count - bad - 2)].sum(dim=1)
    return near.argsort(stable=True)[: max(min(keep or count - bad, count), 1)]


def _by_examples(shared: SharedUpdates) -> Tensor:
    examples = shared.num_examples.double()
    return examples / examples.sum()


def _everywhere(rule: Rule) -> Server:
    return Server(dense=rule, gates=rule, experts=rule)


@dataclass(frozen=True)
class Median(Scheme):
    """The median by value."""

    def server(self, model: ModelShape) -> Server:
        """Take it of every block."""
        return _everywhere(Trimmed(0.5))


@dataclass(frozen=True)
class TrimmedMean(Scheme):
    """The trimmed mean by value.

    Attributes:
        share: β, left out at either end.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("trimmedmean", share=(self.share, 0, 0.5))

    def server(self, model: ModelShape) -> Server:
        """Take it of every block."""
        return _everywhere(Trimmed(self.share))


@dataclass(frozen=True)
class MultiKrum(Scheme):
    """Multi-Krum.

    Attributes:
        bad, keep: of :class:`NearMost`.
    """

    bad: int = 1
    keep: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("multikrum", bad=self.bad, keep=self.keep)
        in_range("multikrum", bad=(self.bad, 0, 1e6), keep=(self.keep, 0, 1e6))

    def server(self, model: ModelShape) -> Server:
        """Choose in every block."""
        return replace(_everywhere(NearMost(self.bad, self.keep)), steps=(TooFew(self.bad),))


@dataclass(frozen=True)
class CentredClipping(Scheme):
    """Centred clipping.

    Attributes:
        radius, iterations: of :class:`CentredClip`.
    """

    radius: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("centredclip", iterations=self.iterations)
        in_range("centredclip", radius=(self.radius, 0, None), iterations=(self.iterations, 1, 100))

    def server(self, model: ModelShape) -> Server:
        """Clip every block."""
        return _everywhere(CentredClip(self.radius, self.iterations))


def _by_client(admit: Admit) -> Server:
    """Average what is left; an expert over those that trained it."""
    return Server(admit=admit, experts=Mean("members"))


@dataclass(frozen=True)
class GeometricMedian(Scheme):
    """Clients weighed by the geometric median of what all of them train.

    Attributes:
        iterations: of :class:`NearCentre`.
    """

    iterations: int = 12

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("geometricmedian", iterations=self.iterations)
        in_range("geometricmedian", iterations=(self.iterations, 1, 1000))

    def server(self, model: ModelShape) -> Server:
        """Weigh clients."""
        return _by_client(NearCentre(self.iterations))


@dataclass(frozen=True)
class TrustedClip(Scheme):
    """Clients weighed by centred clipping of what all of them train.

    Attributes:
        radius, iterations: of :class:`ClippedToCentre`.
    """

    radius: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("trustedclip", iterations=self.iterations)
        in_range("trustedclip", radius=(self.radius, 0, None), iterations=(self.iterations, 1, 100))

    def server(self, model: ModelShape) -> Server:
        """Weigh clients."""
        return _by_client(ClippedToCentre(self.radius, self.iterations))


@dataclass(frozen=True)
class Krum(Scheme):
    """Multi-Krum that keeps or drops whole clients.

    Attributes:
        bad, keep: of :class:`NearOthers`.
    """

    bad: int = 1
    keep: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("krum", bad=self.bad, keep=self.keep)
        in_range("krum", bad=(self.bad, 0, 1e6), keep=(self.keep, 0, 1e6))

    def server(self, model: ModelShape) -> Server:
        """Choose clients."""
        return _by_client(NearOthers(self.bad, self.keep))


@dataclass(frozen=True)
class FLTrust(Scheme):
    """Clients weighed by their likeness to the server's own training, and cut to its length.

    Cao et al., NDSS 2021, arXiv:2012.13995, algorithm 2, with the trust of the shared parts::

        Δ = Σ_i TS_i·(‖Δ_0‖/‖Δ_i‖)·Δ_i / Σ_i TS_i        TS_i = max(0, cos(Δ_i, Δ_0))
    """

    def server(self, model: ModelShape) -> Server:
        """Weigh clients."""
        return _by_client(LikeRoot())
