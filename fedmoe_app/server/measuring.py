"""An exchange without training, for steps of a scheme before, between and after the rounds.

The nodes get the whole global model and send back only what these steps hold: sums over the
model's outputs on their training examples. A step then moves the global model, as one of a round
does. Such an exchange is no round: nobody trains, and the clients of all nodes are asked, not a
draw of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import Message
from torch import Tensor

from fedmoe_app.aggregation.aggregate import stepped, told_by
from fedmoe_app.aggregation.guard import Guard
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.base import flat_signals
from fedmoe_app.schemes.faults import PartError, call, named
from fedmoe_app.schemes.parts import Measured as Statistic
from fedmoe_app.schemes.parts import Step, Telling
from fedmoe_app.schemes.unwritten import GuardedValues
from fedmoe_app.schemes.views import Kept, Now, RoundInfo
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.numbers import decode_number
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.spec import NumberSpec
from fedmoe_app.wire.statistics import RECORD, decode_statistics

QUERY = "query.measure"
PHASE = " (measuring)"  # after the name of who failed in it


@dataclass
class Answers:
    """What the clients sent.

    Attributes:
        by_client: statistics by client number.
        rejected: reason by client, else by node.
        factors: what is left of the most clipped part of a client's sums, 1 for all; empty without
            a guard.
    """

    by_client: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)

    @property
    def is_bounded(self) -> bool:
        """Whether the guard made anything smaller."""
        return any(factor < 1 for factor in self.factors.values())


def specs_of(statistics: Iterable[Statistic], state: ModelState) -> dict[str, NumberSpec]:
    """Return what a reply holds of these statistics, by the name under which it travels."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.named()}
    return {
        f"{type(statistic).__name__}/{name}": NumberSpec(
            *(own.shape, own.low, own.high, own.optional),
            *(own.mass, own.rises, own.falls, own.adds_up),
        )
        for statistic in statistics
        for name, own in statistic.spec(shapes).items()
    }


def decode_measured(
    replies: Iterable[Message],
    registry: ClientRegistry,
    question: Question,
    specs: Mapping[str, NumberSpec],
    statistics: Sequence[Statistic] = (),
) -> Answers:
    """Decode and validate the replies; each node speaks for its own client only.

    Args:
        replies: as they arrive.
        registry: which node may speak for which client.
        question: that was asked.
        specs: what a reply holds.
        statistics: whose numbers are held against each other, too.
    """
    found: dict[int, tuple[int, Mapping[str, Tensor]]] = {}  # node -> client, statistics
    rejected: dict[int, str] = {}
    for message in replies:
        node, content = message.metadata.src_node_id, message.content
        try:
            client = decode_number(content, question, (RECORD,))
            sent = decode_statistics(content, specs)
            _check_possible(statistics, sent)
            registry.claim(node, client, worked=False)
            found[node] = (client, sent)
        except InvalidUpdateError as error:
            rejected[node] = str(error)
    rejected |= {node: why for node, why in registry.settle().items() if node in found}
    good = {
        client: sent for node, (client, sent) in found.items() if registry.client(node) == client
    }
    named = {registry.name(node): f"sums rejected: {why}" for node, why in rejected.items()}
    return Answers(dict(sorted(good.items())), named)


def _check_possible(statistics: Iterable[Statistic], sent: Mapping[str, Tensor]) -> None:
    for statistic in statistics:
        prefix = f"{type(statistic).__name__}/"
        if why := call(statistic, "impossible", _without(prefix, sent)):
            raise InvalidUpdateError(f"statistics.{prefix[:-1]}: {why}")


def _without(prefix: str, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one statistic's numbers by their own names."""
    return {n.removeprefix(prefix): tensor for n, tensor in sent.items() if n.startswith(prefix)}


def bounded(answers: Answers, statistics: Iterable[Statistic], guard: Guard | None) -> Answers:
    """Return the answers with no client's sums beyond what the guard lets one have.

    Args:
        answers: of which all are possible.
        statistics: theirs.
        guard: its strength, and what clients said in earlier rounds; None leaves all as it came.

    Raises:
        PartError: a statistic raised, or returned what cannot be used.
    """
    if guard is None:
        return answers
    limits = guard.limits(list(answers.by_client))
    by_client, factors = dict(answers.by_client), dict.fromkeys(answers.by_client, 1.0)
    for statistic in statistics:
        prefix = f"{type(statistic).__name__}/"
        own = [_without(prefix, sent) for sent in answers.by_client.values()]
        kept = call(statistic, "bounded", own, limits)
        are_kept = isinstance(kept, Sequence) and all(isinstance(each, Kept) for each in kept)
        if not are_kept or len(kept) != len(own):
            raise PartError.of(statistic, "bounded", f"must return one Kept a client, {len(own)}")
        for client, sent, used in zip(answers.by_client, own, kept, strict=True):
            factors[client] = min(factors[client], used.factor)
            if used.numbers is not sent:
                new = {f"{prefix}{name}": tensor for name, tensor in used.numbers.items()}
                by_client[client] = {**by_client[client], **new}
    return replace(answers, by_client=by_client, factors=factors)


def info_of(
    server_round: int, statistics: Sequence[Mapping[str, Tensor]], is_bounded: bool = False
) -> RoundInfo:
    """Describe such an exchange to steps.

    Args:
        server_round: the last round so far; 0 before the first.
        statistics: of the clients, in client order.
        is_bounded: whether the guard made some of them smaller.
    """
    ones = torch.ones(len(statistics))
    return RoundInfo(server_round, ones, ones, (), tuple(statistics), is_bounded)


def told_after(state: ModelState, steps: Sequence[Step], info: RoundInfo) -> Tensors:
    """Return what the steps tell, as it travels.

    Args:
        state: the global state that they have moved.
        steps: in order; those that tell nothing are passed over.
        info: of the exchange.

    Raises:
        PartError: a step raised, or returned what cannot be used.
    """
    now = Now(GuardedValues(dict(state.named())), {}, info)
    telling = [step for step in steps if isinstance(step, Telling)]
    return {
        name: tensor
        for step in telling
        for name, tensor in flat_signals(told_by(step, now, {})).items()
    }


def moved(state: ModelState, steps: Sequence[Step], info: RoundInfo) -> ModelState:
    """Return the global state after the steps; what none of them moved is the same object.

    Args:
        state: before them.
        steps: in order.
        info: of the exchange.

    Raises:
        PartError: a step raised, returned what cannot be used, or wrote to the values.
        ValueError: a step gave NaN or infinity.
    """
    values, change = dict(state.named()), dict[str, Tensor]()
    for step in steps:
        # What a step writes to by mistake is a copy; init may return the values themselves.
        initial = dict(named(step, "init", "", call(step, "init", GuardedValues(values))))
        change, _ = stepped(step, Now(GuardedValues(values), change, info), initial)
    result = ModelState()
    for name, value in values.items():
        new = value + change[name] if name in change else value
        if not bool(torch.isfinite(new).all()):
            raise ValueError(f"{name}: NaN or infinite values")
        result.insert(name, new)
    return result
