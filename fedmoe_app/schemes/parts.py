"""The kinds of parts that schemes are built of, and what is refused when a class is made.

A part is a frozen dataclass of one or more kinds. A kind has one method, and whoever runs the
scheme *always* calls it: it asks ``isinstance(part, Kind)``, never whose function it is. What a
part reads, such as a statistic, it holds in a field: what has to be measured, sent and stored
follows from the fields (:class:`fedmoe_app.schemes.base.Plan`).

What is refused when a class is made, since it would be lost without a word: a public method that no
kind has (helpers begin with an underscore), one that a kind has fixed, one name in two kinds, a
field overridden without its type, a class with fields but without ``@dataclass(frozen=True)``.

Shapes are those of :mod:`fedmoe_app.schemes.views`. Needs torch, and nothing of Flower. The file is
long because an author of a scheme reads all kinds, and what they refuse, in one place.
"""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.faults import PartError, call, share, shown
from fedmoe_app.schemes.views import (
    Block,
    BlockUpdates,
    Kept,
    Limits,
    LocalClient,
    LocalStep,
    Now,
    Outputs,
    Reply,
    RoundInfo,
    SharedUpdates,
    Trained,
)

if TYPE_CHECKING:
    from fedmoe_app.tasks.base import Score


class Frozen:
    """A class whose fields are all declared, or it is refused."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field that loses its type: the override would be ignored."""
        super().__init_subclass__(**kwargs)
        inherited = {n for base in cls.__mro__[1:] for n in getattr(base, _FIELDS, {})}
        for name in inherited & set(vars(cls)) - set(vars(cls).get("__annotations__", {})):
            raise TypeError(
                f"{cls.__name__}.{name} = {vars(cls)[name]!r}: a field needs its type, write "
                f"{name}: ... = ..."
            )

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse a class whose fields are none."""
        for base in cls.__mro__:
            if vars(base).get("__annotations__") and "__dataclass_params__" not in vars(base):
                raise TypeError(
                    f"{base.__name__}: put @dataclass(frozen=True) above it; its fields "
                    "would be ignored"
                )
        return super().__new__(cls)


_FIELDS = "__dataclass_fields__"


def public_methods(cls: type) -> Iterator[str]:
    """Yield the names of methods and properties that a class itself defines for others."""
    for name, value in vars(cls).items():
        is_method = inspect.isfunction(value) or isinstance(
            value, property | classmethod | staticmethod
        )
        if is_method and not name.startswith("_"):
            yield name


class Part(Frozen, ABC):
    """One brick of a scheme."""

    def __eq__(self, other: object) -> bool:
        """Compare parts without fields, which need no decorator; dataclasses bring their own."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        """Go with equality."""
        return hash(type(self))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what nothing would call."""
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __name__:
            return  # the kinds themselves
        _refuse_twice(cls)
        known = {n for base in cls.__mro__[1:] if issubclass(base, Part) for n in vars(base)}
        for name in public_methods(cls):
            if name not in known:
                offered = sorted(n for n in known if not n.startswith("_"))
                near = difflib.get_close_matches(name, offered, 1) or offered
                raise TypeError(
                    f"{cls.__name__}.{name}: nothing calls it; {', '.join(near)} can be defined "
                    "here, and helpers begin with an underscore"
                )
            for base in cls.__mro__[1:]:
                if getattr(vars(base).get(name), "__final__", False):
                    raise TypeError(
                        f"{cls.__name__}.{name}: fixed by {base.__name__}; derive from "
                        f"{base.__mro__[1].__name__}"
                    )


def _refuse_twice(cls: type) -> None:
    """Refuse two kinds that mean different things by one name."""
    kinds = [base for base in cls.__mro__ if base.__module__ == __name__ and base is not Part]
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            both = _own_methods(kind) & _own_methods(other)
            if both and not issubclass(kind, other):
                raise TypeError(
                    f"{cls.__name__}: {kind.__name__} and {other.__name__} both define "
                    f"{min(both)}; make two parts of it"
                )


def _own_methods(kind: type) -> set[str]:
    return set(getattr(kind, "__abstractmethods__", ())) & set(vars(kind))


def parts_in(*halves: Any) -> list[Any]:
    """Return every part and signal that objects hold, at any depth of fields and tuples, once."""
    found: dict[Any, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                walk(item)
        elif not isinstance(value, type):
            if isinstance(value, Part | Signal):
                found[value] = None
            for entry in fields(value) if is_dataclass(value) else ():
                walk(getattr(value, entry.name))

    walk(halves)
    return list(found)


# -- what travels beside values and changes ----------------------------------------------------


@dataclass(frozen=True)
class Signal:
    """A tensor, or tensors by name, from the server to every client.

    A :class:`Telling` part of the server and a term of the client hold the same signal.
    """

    name: str


@dataclass(frozen=True)
class Field:
    """Shape and bounds of a number that travels: the server refuses what does not fit.

    The guard bounds numbers of training that have a ``mass`` or ``adds_up``; any other one lets a
    client say what it likes within the bounds.

    Attributes:
        optional: whether a client may leave it out, such as numbers of an expert it did not train.
        mass: of numbers ≥ 0 by which a client is weighed, the name of what they are a part of: the
            guard bounds the sum of all of one mass by the median client's. "" for other numbers.
        rises: the power of the mass by which a client's weight grows, above 0.
        falls: the power by which something of it grows as the mass falls, mass^(−falls); 0 for
            nothing. Only of a single number.
        adds_up: of numbers named after the model's tensors that the server adds up over rounds: the
            guard bounds the norm of all that a client has sent.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    optional: bool = False
    mass: str = ""
    rises: float = 1.0
    falls: float = 0.0
    adds_up: bool = False


class Statistic(Part):
    """Named numbers that each client sends beside its changes. A part of the server holds it."""


@dataclass(frozen=True)
class Histogram(Statistic):
    """The routing histogram, which every client sends; hold it for the regions.

    Attributes:
        regions: with the mean hidden state of each expert's tokens, by far the largest of it.
    """

    regions: bool = False


REGIONS = Histogram(regions=True)


class Measured(Statistic):
    """A statistic of a scheme's own."""

    @abstractmethod
    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """Return what may be sent, by name.

        Args:
            shapes: of the model's trainable tensors by full name.
        """

    def impossible(self, numbers: Mapping[str, Tensor]) -> str:
        """Return why no examples give these numbers, each within its bounds; "" where some do.

        Asked by the server in an exchange without training: a client that fails is rejected.
        """
        return ""

    def bounded(self, sent: Sequence[Mapping[str, Tensor]], limits: Limits) -> Sequence[Kept]:
        """Return what is used of N clients' numbers, so that no one client decides on their sum.

        Asked by the server in an exchange without training, where the run has a guard.

        Args:
            sent: numbers by name, of each client; all of them are possible.
            limits: of these clients, in the same order.
        """
        return [Kept(numbers) for numbers in sent]


class OfUpdate(Measured):
    """Worked out once, after training."""

    @abstractmethod
    def of_update(self, done: Trained) -> Tensors:
        """Return the numbers by name; float32."""


class OfReceived(Measured):
    """Worked out from the received model's score on the client's training examples."""

    @abstractmethod
    def of_received(self, score: Score) -> Tensors:
        """Return the numbers by name; float32. ``score`` holds loss, correct and items as sums."""


class OfOutput(Measured):
    """Worked out from the received model's outputs on the client's training examples.

    The client's hold-out is left out. It costs a forward pass over the examples.
    """

    @abstractmethod
    def of_output(self, out: Outputs) -> Tensors:
        """Return the numbers of one batch by name; batches add up, in float64."""


class OfInputs(Measured):
    """Worked out in the training steps, from what goes into the linear maps that are trained.

    Gates are left out, and stacked experts that lie ``[in, out]`` (gpt-oss); adapters are not.
    """

    @abstractmethod
    def of_inputs(self, key: str, x: Tensor) -> Tensors:
        """Return the numbers of one batch and map by name; batches add up, in float64.

        Args:
            key: full name of the map's weight, ``[out, in]``.
            x: inputs of the tokens that the loss depends on by this map, ``[T, in]`` float32,
                without graph: no padding; of an expert, the tokens that were routed to it.
        """


@dataclass(frozen=True)
class MeanGradient(Part):
    """Hold it to be given the mean gradient of the steps, at the price of one copy of them."""


@dataclass(frozen=True)
class RootChange(Part):
    """Hold it to be given the change of the server's own training on rows that it trusts.

    The server trains the global model of every round as a client would (``robust.root-source``).
    """


ROOT_CHANGE = RootChange()


# -- on the client -----------------------------------------------------------------------------


class Select(Part):
    """Which experts a client trains."""

    @abstractmethod
    def budget(self, own: LocalClient) -> int:
        """Return how many experts a layer this client may train."""


class Once(Select):
    """Chosen once a round, so that a node can hold the chosen experts only."""

    @abstractmethod
    def choose(self, own: LocalClient) -> Sequence[Collection[int]]:
        """Return the experts to train, by layer."""


class InBatch(Select):
    """Chosen anew in every training step; the others are frozen for it."""

    @abstractmethod
    def choose(self, probs: Tensor, routed: Tensor, own: LocalClient) -> Tensor:
        """Return which experts of a layer this batch trains, ``[E]`` bool.

        Args:
            probs: p(x, e) of the batch's tokens, ``[T, E]`` float32, without graph.
            routed: whether a token of the batch goes to e, ``[E]`` bool.
            own: the client.
        """


class Keeps(Part):
    """Keeps tensors on the node's disk for the client's next round."""

    @abstractmethod
    def keep(self, done: Trained) -> Tensors:
        """Return all that this part shall know next time, by names of its own."""


class Start(Keeps):
    """Lets training start from other values than the received ones."""

    @abstractmethod
    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Return the values to start from; called only if something was kept.

        Only the gates of it are taken in the slot ``start_gates``, only the experts in
        ``start_experts``. Do not write to ``received``.
        """


class Term(Part):
    """Added to the task's loss in every training step."""

    @abstractmethod
    def loss(self, step: LocalStep) -> Tensor | None:
        """Return a scalar with graph, or None for nothing."""


class WeightTerm(Term):
    """A term of the weights."""


class RouterTerm(Term):
    """A term that reads ``step.router_probs``, too."""


class OutputTerm(Term):
    """A term that reads ``step.logits``, ``step.labels`` and ``step.label_counts``, too."""


class TeacherTerm(OutputTerm):
    """An output term that reads ``step.teacher``, too: logits of the received model.

    They are worked out once a round, before training, in a forward pass over the examples.
    """


class FeatureTerm(Term):
    """A term that reads ``step.features``, too: what the head sees of each example."""


class TaskLoss(Part):
    """Takes the place of the task's own loss; reads what an :class:`OutputTerm` does."""

    @abstractmethod
    def loss(self, step: LocalStep) -> Tensor:
        """Return a scalar with graph, in place of the mean cross-entropy of ``step.logits``."""


class Logits(Part):
    """Puts other logits in the place of the model's, for the loss and all of its terms.

    It reads what an :class:`OutputTerm` and a :class:`FeatureTerm` do, and ``step.recalled``: the
    features of the same examples as the client sent them into sums when nobody trained. So a loss
    can see an example as a model would that has not learnt it. Scores are the model's own.
    """

    @abstractmethod
    def logits(self, step: LocalStep) -> Tensor:
        """Return logits of the batch with graph, of the shape of ``step.logits``."""


class Split(Part):
    """Which of its examples a client trains on; the others only go into sums over outputs."""

    @abstractmethod
    def trained(self, labels: Tensor, seed: int) -> Tensor:
        """Return whether an example is trained on, ``[n]`` bool, and at least one is.

        Those that are not, or all if all are, are what the client's :class:`OfOutput` statistics
        are worked out from.

        Args:
            labels: classes of the client's training examples, ``[n]``, hold-out left out.
            seed: of this client, the same in every round.
        """


class Freeze(Part):
    """Tensors that local training leaves as they were received; they still travel."""

    @abstractmethod
    def frozen(self, key: str, server_round: int) -> bool:
        """Return whether the tensor of this full name is not trained in this round, from 1."""


@dataclass(frozen=True)
class PersonalCopy(Part):
    """A second model that never leaves the client, mixed with the global one by a gate.

    Attributes:
        joint: the mixed output trains the global copy, too.
        gate_learning_rate: of the mixing gate.
    """

    joint: bool = False
    gate_learning_rate: float = 1e-2


class Outgoing(Part):
    """Has the client's last word on what leaves it, such as a bound or noise.

    What it changes is what the server sees. What the client keeps for itself is as it was trained.
    """

    @abstractmethod
    def send(self, sent: Mapping[str, Tensor], seed: int) -> Tensors:
        """Return what leaves, by the names and in the shapes given.

        Args:
            sent: the changes by full name, without those of experts that were not trained, and the
                scheme's own statistics by ``Statistic/name``; float32. Numbers of examples, the
                routing histogram and the metrics are not among them.
            seed: of this client and round. Whoever knows the run config knows it: noise that is to
                hide something needs the system's randomness.
        """


# -- on the server: how the changes of a block are combined ------------------------------------


@dataclass(frozen=True)
class Scaled:
    """factor·tensor, added to a sum in one pass."""

    factor: float
    tensor: Tensor


class Rule(Part):
    """How the changes of one block become the global change."""


class Summed(Rule):
    """By sums alone: what a client adds depends on that client only.

    So its reply need not wait for the others, nor be kept.
    """

    @abstractmethod
    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Return what this client adds to the sums, by name.

        It is asked of every client, also of one that did not train the block.
        """

    @abstractmethod
    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Return the change by the tensor's name, from the totals."""


@dataclass(frozen=True)
class Mean(Summed):
    """Σ_i a_i·Δ_i / Σ_i a_i with a_i = :meth:`weight`; the default is n_i, FedAvg.

    Attributes:
        over: what is divided by. "all": the a_i of all clients, of which those that did not train
            the block count as unchanged; "members": the a_i of those that did; a number above 0:
            that number, whoever replied, so that the change tells nothing of how many did.
    """

    over: str | float = "all"

    def __post_init__(self) -> None:
        """Refuse what nothing can be divided by."""
        over = self.over
        is_number = isinstance(over, int | float) and not isinstance(over, bool)
        if not (is_number and 0 < over < math.inf) and over not in ("all", "members"):  # type: ignore[operator]
            raise ValueError(
                f'{type(self).__name__}: over = {over!r}: choose "all", "members" or a number > 0'
            )

    def weight(self, reply: Reply, block: Block) -> float:
        """Return a_i ≥ 0."""
        return reply.num_examples

    @final
    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add a_i·Δ_i, and a_i."""
        change = reply.change(block)
        if change is None:
            return {"of": self._share(reply, block)} if self.over == "all" else {}
        weight = self._share(reply, block)
        of = {} if isinstance(self.over, int | float) else {"of": weight}
        return of | {f"sum.{n}": Scaled(weight, t) for n, t in change.items()}

    @final
    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Divide, in place; zeros where all weights are 0."""
        whole = self.over if isinstance(self.over, int | float) else sums["of"]
        totals = {name[4:]: total for name, total in sums.items() if name != "of"}
        return {n: t.div_(whole) if whole else t.zero_() for n, t in totals.items()}

    def _share(self, reply: Reply, block: Block) -> float:
        weight: float = share(
            self,
            "weight",
            call(self, "weight", reply, block),
            f"client {reply.client}, {block.kind} {block.key}",
        )
        return weight


class Together(Rule):
    """Needs the changes of all clients side by side, so they wait for each other."""

    @abstractmethod
    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return the global change, ``[P]``."""


class Weighted(Together):
    """A weighted sum whose weights depend on all clients.

    A rule that goes on from that sum overrides :meth:`combine`, too.
    """

    @abstractmethod
    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return the members' weights, ``[M]``; or ``[M, R]`` for the R rows of a gate."""

    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return Σ_i weights[i]·Δ_i, ``[P]``."""
        weights = call(self, "weights", updates)
        if not _fit(weights, updates):
            raise PartError.of(
                self,
                "weights",
                f"returned {shown(weights)} for {len(updates.members)} members of {updates.block}: "
                "must be [M], or [M, R] for a gate of R rows",
            )
        return updates.weighted_sum(weights)


def _fit(weights: object, updates: BlockUpdates) -> bool:
    """Whether weights are ``[M]``, or ``[M, R]`` where a tensor of the block has R rows."""
    if not isinstance(weights, Tensor) or weights.dim() not in (1, 2):
        return False
    rows = {len(change) for change in updates.changes[0].values() if change.dim()}
    has_rows = weights.dim() == 1 or weights.shape[1] in rows
    return len(weights) == len(updates.members) and has_rows


@dataclass(frozen=True)
class ByExamples(Weighted):
    """Σ_i (n_i/Σn)·Δ_i over the members: as :class:`Mean`, but divided before it is summed.

    Gates are averaged in this form; the two differ in the last bit.
    """

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return n_i / Σ n, ``[M]``."""
        return updates.by_examples


class Rescaling(Weighted):
    """A rule that rescales the global values themselves, so that it needs replies to these.

    Buffered rounds, whose replies may be older, are refused with :meth:`remedy`.
    """

    @abstractmethod
    def remedy(self) -> str:
        """Return what to set instead, with the key."""


class Admit(Part):
    """How much each client counts, decided once for its whole update, before any rule.

    It is decided on what all clients train, and holds for their experts, too: an expert has too few
    members for a decision of its own. All replies wait for each other.
    """

    @abstractmethod
    def admit(self, shared: SharedUpdates) -> Tensor:
        """Return a factor ≥ 0 of each client's n_i, ``[N]``; 0 leaves it out of every block.

        A rule that weighs clients by something else than n_i feels the 0 only.
        """

    def scale(self, shared: SharedUpdates) -> Tensor | None:
        """Return a factor ≥ 0 of each client's changes, ``[N]``; None is 1 for all.

        Experts never grow by it: of them it is min(1, factor), since it was decided on other parts.
        """
        return None


# -- on the server: once a round ---------------------------------------------------------------


class Step(Part):
    """Rewrites the round's change. Its state is a value: it lies in the checkpoint, not in self."""

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return the state before the first round, by name; ``values`` are the global ones."""
        return {}

    @abstractmethod
    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return the new change by full name, and the state with the names and shapes it had."""


class Telling(Part):
    """Tells all clients something with the next round."""

    @abstractmethod
    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Return what to tell; ``state`` is the new one if the part is a :class:`Step`, too."""


class Assign(Part):
    """Decides on the server which experts each client gets, and trains, in its next rounds.

    A client that it has not assigned any yet chooses for itself (``Client.select``, a :class:`Once`
    part), which also says how many it can train.
    """

    @abstractmethod
    def assign(
        self, replies: Sequence[Reply], state: Mapping[str, Tensor]
    ) -> tuple[Mapping[int, Tensor], Tensors]:
        """Return the experts by client number, ``[L, E]`` bool, and the state, all of it.

        It is asked once a round. Who is not among the returned clients keeps what it had.

        Args:
            replies: of the round, in client order, without their changes; each tells routing and
                ``expert_budget``.
            state: what it returned after the round before, by name; empty in the first.
        """


class Probe(Part):
    """Tells numbers of a round for ``metrics.jsonl``; a fault in it costs these numbers only.

    Every probe has a field ``of``: what it looks at, "selection", "loss", "gates" or "experts". A
    combination takes the probes of what it takes.
    """


class RoundProbe(Probe):
    """Looks at a round."""

    @abstractmethod
    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        """Return tensors or lists by name."""


class ExpertProbe(Probe):
    """Looks at every expert that was combined."""

    @abstractmethod
    def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
        """Return scalars, or tensors ``[M]`` or ``[M, M]`` of its members, by name.

        Args:
            updates: what was combined.
            change: what the rule made of it, ``[P]``.
        """


# -- the two halves ----------------------------------------------------------------------------

_SLOTS: dict[str, tuple[type, ...]] = {
    "select": (Once, InBatch),
    "start_gates": (Start,),
    "start_experts": (Start,),
    "loss": (TaskLoss,),
    "terms": (Term,),
    "logits": (Logits,),
    "split": (Split,),
    "freeze": (Freeze,),
    "personal": (PersonalCopy,),
    "send": (Outgoing,),
    "dense": (Rule,),
    "gates": (Rule,),
    "experts": (Rule,),
    "assign": (Assign,),
    "steps": (Step, Telling),
    "before": (Step,),
    "refresh": (Step,),
    "after": (Step,),
    "reported": (Step,),
    "probes": (RoundProbe, ExpertProbe),
    "admit": (Admit,),
}


def _check_slots(half: Any) -> None:
    for slot in fields(half):
        value = getattr(half, slot.name)
        takes = " or ".join(kind.__name__ for kind in _SLOTS[slot.name])
        many = isinstance(slot.default, tuple)
        if many and not isinstance(value, tuple):
            raise TypeError(
                f"{type(half).__name__}.{slot.name} = {value!r}: a tuple of {takes} parts; write "
                f"({value!r},)"
            )
        for part in value if many else (value,):
            is_empty = part is None and slot.default is None
            if not is_empty and not isinstance(part, _SLOTS[slot.name]):
                raise TypeError(f"{type(half).__name__}.{slot.name} = {part!r}: takes {takes}")
            hash(part)  # parts are linked by ==, so their fields must be hashable


@final
@dataclass(frozen=True)
class Client:
    """What a client does; empty is plain local training of everything.

    Attributes:
        select: which experts it trains.
        start_gates, start_experts: which other values they start from.
        loss: what stands in the place of the task's own loss.
        terms: what is added to its loss.
        logits: what the loss sees in the place of the model's logits.
        split: which of its examples it trains on, and which go into sums instead.
        freeze: what it does not train.
        personal: a model of its own beside the global one.
        send: what happens to all that leaves it, in this order.
    """

    select: Once | InBatch | None = None
    start_gates: Start | None = None
    start_experts: Start | None = None
    loss: TaskLoss | None = None
    terms: tuple[Term, ...] = ()
    logits: Logits | None = None
    split: Split | None = None
    freeze: Freeze | None = None
    personal: PersonalCopy | None = None
    send: tuple[Outgoing, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a part in the wrong slot."""
        _check_slots(self)


@final
@dataclass(frozen=True)
class Server:
    """What the server does; empty is FedAvg.

    Attributes:
        dense, gates, experts: how their changes are combined.
        assign: which experts each client gets and trains next.
        steps: what happens once a round with the combined change, in this order.
        before, refresh, after: steps before the first round, after every round, and after the last
            one. Clients do not train for them: asked once more, they send the :class:`OfOutput`
            numbers that these hold, of the global model as it is then. What one of them tells is
            told until it tells anew.
        reported: steps that make of the global model the one that is evaluated and saved, once a
            round, when all else has moved it: ``now.values`` are its values, ``now.change`` is
            empty. Clients go on from the global model. A tensor without change is reported as it
            is.
        probes: what is told of a round.
        admit: how much each client counts.
    """

    dense: Rule = Mean()
    gates: Rule = ByExamples()
    experts: Rule = Mean()
    assign: Assign | None = None
    steps: tuple[Step | Telling, ...] = ()
    before: tuple[Step, ...] = ()
    refresh: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    reported: tuple[Step, ...] = ()
    probes: tuple[Probe, ...] = ()
    admit: Admit | None = None

    def __post_init__(self) -> None:
        """Refuse a part in the wrong slot."""
        _check_slots(self)

    def rule(self, block: Block) -> Rule:
        """Return the rule of a block."""
        return {"dense": self.dense, "gate": self.gates, "expert": self.experts}[block.kind]
