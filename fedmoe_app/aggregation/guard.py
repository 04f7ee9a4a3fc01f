"""The guard: what one client can do to a round is bounded, whatever it sends. On by default.

Of a client's reply, which is decoded and checked by then:

    share   n_i   ← min(n_i, share·median_j n_j),  and the same of the tokens in its histogram,
            whose counts shrink with them, and of how sure its router is (the sum of its margins):
            FC-MoE and FedAlign-MoE weigh clients by these
    surest  prob·margin of an expert ≤ share·median_j max_e prob_j·margin_j: FedAlign-MoE weighs
            experts one by one, so that a sum over layers says too little
    steps   n_i/τ_i ≤ share·median_j n_j/τ_j, and τ_i shrinks with n_i: FedNova divides by τ_i, and
            goes as many steps as Σ n_i·τ_i says
    norm    Δ_i,b ← Δ_i,b·min(1, slack·m_k/‖Δ_i,b‖)  for b of kind k, and then
            Δ_i   ← Δ_i·min(1, slack·m_whole/‖Δ_i‖)

A block b is what is clipped as one: all dense tensors, all gates, each expert. There is one m for
the experts of a round, over all pairs of client and expert: an expert with two trainers has no
median of its own that is worth the name. Each client counts once in it, however many experts it
trained, so that nobody has more say by training more.

**m_k** is the larger one of the medians of this round and of the last round with three replies or
more. So the guard costs no waiting: a reply within the last round's bounds is within the larger
ones, too, and is summed as it comes, untouched, bit for bit. Only one that is beyond them waits
until the round is complete, and shrinks if it is still beyond. In a run's first round all wait
anyway. **Medians of the shares** are taken over all clients that have replied in earlier rounds,
or over this round's while these are fewer than three.

    mass    Σ of a scheme's own numbers by which it weighs clients, all of one mass together (the
            squares of inputs of GramMerge): at most share·median_j, by one factor. Where a client
            weighs by a power of it, x^p (the losses of q-FedAvg): at most share^(1/p)·median_j;
            where less of it weighs more, x^(−p), too: at least median_j/share^(1/p)
    total   of numbers that the server adds up over the rounds (SCAFFOLD's control variates): the
            norm of all that a client has sent, see :mod:`fedmoe_app.aggregation.totals`
    way     Δ_i ← f_i·Δ_i for one that goes against the rounds before, which is left out at f_i = 0;
            only where the strength says so, since that reads each reply once more:
            :mod:`fedmoe_app.aggregation.direction`

**A mass** is bounded as a norm is, by this round's median and the last one's, but by the clients'
share. A client that sent none of it has a mass of 0 in the median: what most did not send counts
for nothing, or a map that is merged by examples would follow the one that sent squares for it.

Fewer than three replies have no majority: they are not clipped. A kind that fewer than half of the
clients have moved at all (frozen, or thinned out by a codec) has no bound of its own, only that of
the whole.

Norms run in float64 over the decoded values, after codec and discount.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedmoe_app.aggregation.direction import Direction
from fedmoe_app.aggregation.medians import MAJORITY
from fedmoe_app.aggregation.sizes import (
    KINDS,
    Shares,
    Size,
    margin_of,
    root,
    size_of,
    surest_of,
    tokens_of,
    typical_of,
    usual_of,
)
from fedmoe_app.aggregation.times import Times
from fedmoe_app.aggregation.totals import Sketch, Totals, block_of
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ExpertKey, ModelState
from fedmoe_app.schemes.views import Limits

if TYPE_CHECKING:
    from fedmoe_app.wire.spec import NumberSpec
    from fedmoe_app.wire.update import ClientUpdate

_SHARES = 5
_Norms = Mapping[str, float]  # m_k or a bound by kind; a kind that is unknown is absent


@dataclass(frozen=True)
class Strength:
    """How much beyond the median a client may be.

    Attributes:
        slack: times the median norm.
        share: times the median client's examples, tokens and margins.
        length: times the median length of features that are summed without training. A norm before
            the head makes all features of a model about as long, so that honest ones are within
            1.25 even where half of all norms are beyond the median.
        spread: times the sampling error of a class mean, by which it is away from those of others;
            honest ones were within 1.8 on the embedded task.
        total: times the median norm of all that a client has sent of numbers that add up. What an
            honest one lacks there it never makes good, so that this is larger than the others.
        direction: replies that a round must have for one that goes against the rounds before to
            count for less; 0 looks at no direction.
    """

    slack: float
    share: float
    length: float = 2.0
    spread: float = 4.0
    total: float = 3.0
    direction: int = 0


STRENGTHS = {"default": Strength(1.5, 1.5), "tight": Strength(1.0, 1.0, 1.25, 2.0, 1.5, 7)}


@dataclass(frozen=True)
class Clip:
    """By how much the blocks of a reply shrink: a factor each, 1 for one within its bound.

    ``numbers`` are the factors of a scheme's own numbers, by name, of those that shrink; ``floors``
    what others are at least.
    """

    dense: float = 1.0
    gates: float = 1.0
    experts: Mapping[ExpertKey, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def least(self) -> float:
        """The smallest factor of a block."""
        return min((self.dense, self.gates, *self.experts.values()))

    def times(self, factor: float) -> Clip:
        """Return a clip that makes all blocks smaller by one factor more."""
        if factor == 1:
            return self
        experts = {key: own * factor for key, own in self.experts.items()}
        return replace(self, dense=self.dense * factor, gates=self.gates * factor, experts=experts)

    @property
    def least_number(self) -> float:
        """The smallest factor of a scheme's own number."""
        return min(self.numbers.values(), default=1.0)


@dataclass(frozen=True)
class Guarded:
    """What the guard did to a round.

    Attributes:
        factors: client -> the smallest factor of its blocks, 1 for one that was left as it came.
        typical: m by kind, that of this round; the bound is slack times it.
        masses: client -> the smallest factor of its masses and totals; empty where nobody sent any.
        against: clients that are left out, since they go against the rounds before.
    """

    factors: Mapping[int, float]
    typical: _Norms
    masses: Mapping[int, float] = field(default_factory=dict)
    against: Sequence[int] = ()


class Guard:
    """Bounds the replies of a run; it remembers what earlier rounds were like.

    Args:
        strength: how much beyond the median a client may be.

    Attributes:
        typical: m by kind of the last round that had a majority.
        usual: median mass of the last round that had a majority, by mass.
        known: client -> the shares of its last reply, as it came.
        totals: what clients have sent of numbers that add up.
        direction: which way the run goes.
    """

    def __init__(self, strength: Strength) -> None:
        self._strength = strength
        self.typical: dict[str, float] = {}
        self.usual: dict[str, float] = {}
        self.known: dict[int, Shares] = {}
        self.totals = Totals(strength.total)
        self.direction = Direction(strength.direction)
        self._most: Shares | None = None  # of `known`; None until it is asked for

    # -- checkpoints -------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for :meth:`load`; JSON keeps these numbers exactly."""
        known = {str(client): list(sizes) for client, sizes in self.known.items()}
        found = {"typical": dict(self.typical), "usual": dict(self.usual), "known": known}
        parts = {"totals": self.totals.dump(), "direction": self.direction.dump()}
        return found | {name: dumped for name, dumped in parts.items() if dumped}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on from what :meth:`dump` returned; from nothing where the run had no guard."""
        self.typical = dict(dumped.get("typical", {}))
        self.usual = dict(dumped.get("usual", {}))
        known = dumped.get("known", {})
        # Older checkpoints have not all: a client's own are noted when it comes again.
        missing = (0.0,) * _SHARES
        self.known = {int(c): (*shares, *missing[len(shares) :]) for c, shares in known.items()}
        self.totals.load(dumped.get("totals", {}))
        self.direction.load(dumped.get("direction", {}))
        self._most = None

    # -- sums without training ---------------------------------------------------------------------

    def limits(self, clients: Sequence[int]) -> Limits:
        """Return what bounds the sums that these clients send without training, in this order."""
        said = tuple(self.known[c][0] if c in self.known else math.inf for c in clients)
        own = self._strength
        return Limits(own.share, own.length, own.spread, said)

    # -- a round -----------------------------------------------------------------------------------

    def size_of(self, update: ClientUpdate, numbers: Mapping[str, NumberSpec]) -> Size:
        """Return how large a reply is, and which way it goes; see there."""
        size = size_of(update, numbers)
        way = self.direction.sketch(update.changes, size.whole)
        return replace(size, adding_up=self._sketch(update, size), way=way)

    def _sketch(self, update: ClientUpdate, size: Size) -> Sketch:
        names = [name for name, number in size.numbers.items() if number.adds_up]
        return self.totals.sketch(update.statistics, names)

    def is_within(self, size: Size, num_asked: int) -> bool:
        """Whether a reply is within the bounds already, whatever the others send.

        Args:
            size: of the reply.
            num_asked: clients that were asked in its round.
        """
        if num_asked < MAJORITY and not self.typical:
            return True  # the round will have no bounds
        if len(self.known) < MAJORITY:
            return False  # what it counts as is not known yet
        if any(_beyond(size, self.usual, self.usual, self._strength.share)):
            return False
        if not self.totals.is_within(size.client, size.adding_up):
            return False
        if self.direction.along(size.way) < 0:
            return False
        slack = self._strength.slack
        return all(
            max(size.of(kind), default=0.0) <= slack * self.typical.get(kind, 0.0) for kind in KINDS
        )

    def counted(self, update: ClientUpdate, bounds: Shares | None = None) -> ClientUpdate:
        """Return an update whose share is bounded, if that can be told before the round's end.

        Args:
            update: as it came.
            bounds: of the shares, () for none; None for those by the clients of earlier rounds.
        """
        if bounds is None:
            if self._most is None:  # once a round: the medians are those of all clients
                self._most = self._bounds_by(self.known.values())
            bounds = self._most
        if not bounds:
            return update
        most, most_tokens, most_margin, most_a_step, most_sure = bounds
        if update.num_examples > most:
            update = replace(update, counts_as=max(1, int(most)))
        update = _with_steps(update, most_a_step)
        tokens = tokens_of(update.routing)
        if tokens > most_tokens:
            update = replace(update, routing=shrunk(update.routing, most_tokens / tokens))
        margin = margin_of(update.routing)
        if margin > most_margin:
            less = update.routing.margin * (most_margin / margin)
            update = replace(update, routing=replace(update.routing, margin=less))
        if 0 < most_sure < surest_of(update.routing):
            routing = update.routing
            least = most_sure / routing.prob.double().clamp_min(most_sure)
            margin_left = routing.margin.double().minimum(least).to(routing.margin)
            update = replace(update, routing=replace(routing, margin=margin_left))
        return update

    def _bounds_by(self, known: Collection[Shares]) -> Shares:
        """Return how large each share may be beside these; () where they are no majority."""
        if len(known) < MAJORITY:
            return ()
        return tuple(
            self._strength.share * statistics.median(each) for each in zip(*known, strict=True)
        )

    def close(
        self, updates: Sequence[ClientUpdate], sizes: Mapping[int, Size], summed: Iterable[int]
    ) -> tuple[list[ClientUpdate], Guarded]:
        """Bound the updates of a round that is complete; return those that are left, and how.

        Args:
            updates: in client order.
            sizes: client -> the size of its reply.
            summed: clients whose changes are in the sums already; they were within the bounds.
        """
        taken = set(summed)
        own = [sizes[update.client] for update in updates]
        factors_of = self.totals.close(self._sketches(updates, own), taken)
        typical = {
            kind: max(self.typical.get(kind, 0.0), norm)
            for kind, norm in (self.typical | typical_of(own)).items()
        }
        medians = usual_of(own)
        usual = {mass: max(self.usual.get(mass, 0.0), median) for mass, median in medians.items()}
        least = {
            mass: min(self.usual.get(mass, median), median) for mass, median in medians.items()
        }
        usual, least = self.usual | usual, self.usual | least
        early = len(self.known) < MAJORITY
        bounds = self._bounds_by([size.shares for size in own]) if early else ()
        any_masses = any(size.masses or size.lengths for size in own)
        along = self.direction.close({size.client: size.way for size in own})
        # A rule that looks for the middle of all would take a change of 0 for it.
        against = [client for client, factor in along.items() if not factor and client not in taken]
        found, factors, masses = [], {}, {}
        for update in updates:
            if update.client in against:
                continue
            clip = Clip()
            if update.client not in taken:
                clip = self._clip(sizes[update.client], typical, usual, least)
                clip = clip.times(along[update.client])
                clip = _with_totals(clip, sizes[update.client], factors_of[update.client])
                update = clipped(update, clip)
                update = self.counted(update, bounds) if early else update
            found.append(update)
            factors[update.client] = clip.least
            if any_masses:
                masses[update.client] = clip.least_number
        return found, Guarded(factors, typical, masses, against)

    def learn(self, sizes: Mapping[int, Size]) -> None:
        """Note what the replies of a round were like that became a new global state."""
        self.typical |= typical_of(list(sizes.values()))
        self.usual |= usual_of(list(sizes.values()))
        self.known |= {client: size.shares for client, size in sizes.items()}
        self.totals.learn(list(sizes))
        self.direction.learn({client: size.way for client, size in sizes.items()})
        self.direction.begin([_lengths_of(size) for _, size in sorted(sizes.items())])
        self._most = None

    def _sketches(
        self, updates: Sequence[ClientUpdate], sizes: Sequence[Size]
    ) -> dict[int, Sketch]:
        """Return the sketches of a round's numbers that add up; its first round draws the key.

        What came before the key was there, for this round or a later one, is sketched now.
        """
        if not self.totals.key and any(own.lengths for own in sizes) and len(sizes) >= MAJORITY:
            self.totals.begin([own.lengths for own in sizes])
        return {
            update.client: own.adding_up or self._sketch(update, own)
            for update, own in zip(updates, sizes, strict=True)
        }

    def _clip(
        self, size: Size, typical: _Norms, usual: Mapping[str, float], least: Mapping[str, float]
    ) -> Clip:
        bounds = {kind: self._strength.slack * norm for kind, norm in typical.items()}
        dense = _factor(size.dense, bounds.get("dense"))
        gates = _factor(size.gates, bounds.get("gates"))
        experts = {key: _factor(norm, bounds.get("expert")) for key, norm in size.experts.items()}
        parts = (factor * size.experts[key] for key, factor in experts.items())
        left = root((dense * size.dense, gates * size.gates, *parts))
        rest = _factor(left, bounds.get("whole"))
        # Without a median of any mass there was no round of a majority yet.
        numbers, floors = _beyond(size, usual, least, self._strength.share) if usual else ({}, {})
        experts = {key: factor * rest for key, factor in experts.items()}
        return Clip(dense * rest, gates * rest, experts, numbers, floors)


def _lengths_of(size: Size) -> tuple[float, ...]:
    return (size.dense, size.gates, *size.experts.values())


# -- masses ------------------------------------------------------------------------------------


def _beyond(
    size: Size, usual: Mapping[str, float], least: Mapping[str, float], share: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return factors of the numbers that are too large, and what those too small are at least.

    Args:
        size: of a reply.
        usual: median mass, by mass, for the upper bounds.
        least: the same for the lower ones.
        share: how often a client may weigh what the median client does.
    """
    factors, floors = {}, {}
    for name, number in size.numbers.items():
        if number.mass not in size.masses:
            continue
        own, median = size.masses[number.mass], usual.get(number.mass, 0.0)
        most = _root_of(share, number.rises) * median
        if own > most:
            factors[name] = most / own
        lowest = least.get(number.mass, 0.0) / _root_of(share, number.falls)
        if own < lowest:
            floors[name] = lowest
    return factors, floors


def _root_of(share: float, power: float) -> float:
    """Return share^(1/power); infinity for a power next to 0, or where there is none."""
    try:
        return float(share ** (1 / power)) if power else math.inf
    except OverflowError:
        return math.inf


# -- what is made of a reply -------------------------------------------------------------------


def clipped(update: ClientUpdate, clip: Clip) -> ClientUpdate:
    """Return an update whose blocks shrink; one within its bounds is the same object."""
    if clip.numbers or clip.floors:
        numbers: Any = Times(update.statistics, clip.numbers, clip.floors)
        update = replace(update, statistics=numbers)
    if clip.least >= 1:
        return update
    changes = update.changes
    small: Any = ModelState(
        _shrunk(changes.dense, clip.dense),
        {layer: _shrunk(tensors, clip.gates) for layer, tensors in changes.gates.items()},
        {key: _shrunk(tensors, clip.experts[key]) for key, tensors in changes.experts.items()},
    )
    return replace(update, changes=small)


def _with_totals(clip: Clip, size: Size, factors: Mapping[str, float]) -> Clip:
    """Return a clip with the factors of numbers that add up; ``factors`` are by block."""
    if not factors:
        return clip
    names = [name for name, number in size.numbers.items() if number.adds_up]
    own = {name: factors[block_of(name)] for name in names if block_of(name) in factors}
    return replace(clip, numbers={**clip.numbers, **own})


def shrunk(routing: RoutingStats, factor: float) -> RoutingStats:
    """Return a histogram of fewer tokens; an expert that got one still has one."""
    count = (routing.count.double() * factor).long()
    return replace(
        routing,
        count=count.maximum(routing.count.clamp_max(1)),
        tokens=(routing.tokens.double() * factor).long(),
    )


def _with_steps(update: ClientUpdate, most_a_step: float) -> ClientUpdate:
    """Return an update that took as many steps as the examples give that it counts for.

    Args:
        update: with its share bounded.
        most_a_step: examples that a step may have; 0 if that is not known.
    """
    said = max(update.steps, 1.0)
    steps = said * update.counted / update.num_examples
    if most_a_step:
        steps = max(steps, update.counted / most_a_step)
    return update if steps == said else replace(update, steps_as=steps)


def _shrunk(tensors: Mapping[str, Tensor], factor: float) -> Any:
    return tensors if factor >= 1 else Times(tensors, factor)


def _factor(norm: float, bound: float | None) -> float:
    return 1.0 if bound is None or norm <= bound else bound / norm
