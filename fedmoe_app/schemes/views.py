"""What the parts of a scheme are shown: replies, a block's changes, a round, a training step.

All of them are read-only. Shapes: N clients in the round, M of them trained the block at hand, L
MoE layers, E experts a layer, P values of a block, T tokens, D hidden size.

The file is long because it is the list of all that a part may read: its author looks here only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors, expert_name, flatten, gate_name
from fedmoe_app.schemes.sums import (
    PairRule,
    cosines,
    dots,
    gram,
    norms,
    project,
    weighted_sum,
)

if TYPE_CHECKING:  # the histogram's module imports models
    from fedmoe_app.moe.routing import RoutingStats
    from fedmoe_app.schemes.parts import Signal, Statistic

DENSE, GATE, EXPERT = "dense", "gate", "expert"
EMPTY = torch.empty(0)  # of what was not asked for


@dataclass(frozen=True)
class Block:
    """What is combined at a time: a dense tensor, the gate of a layer, or an expert.

    Attributes:
        kind: "dense", "gate" or "expert".
        key: the tensor's name, the layer, or (layer, expert).
    """

    kind: str
    key: Any

    def name(self, tensor: str) -> str:
        """Return the full name of one of its tensors."""
        if self.kind == DENSE:
            return tensor
        if self.kind == GATE:
            return gate_name(self.key, tensor)
        layer, expert = self.key
        return expert_name(layer, expert, tensor)

    def of(self, state: ModelState) -> Mapping[str, Tensor] | None:
        """Return its tensors in a state, or in changes; None where it is not among them."""
        if self.kind == DENSE:
            return {self.key: state.dense[self.key]} if self.key in state.dense else None
        return state.gates.get(self.key) if self.kind == GATE else state.experts.get(self.key)


def blocks_of(state: ModelState) -> Iterator[Block]:
    """Yield the blocks of a state in the order of ``state.named()``."""
    yield from (Block(DENSE, name) for name in state.dense)
    yield from (Block(GATE, layer) for layer in sorted(state.gates))
    yield from (Block(EXPERT, key) for key in sorted(state.experts))


# -- on the server -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What one client sent.

    Attributes:
        client: its number.
        num_examples, num_steps: training examples, and optimiser steps of the round.
        routing: its routing histogram, ``[L, E]`` tensors.
        changes: local − received, float32.
        statistics: what its parts measured beside them, by ``Statistic/name``.
        expert_budget: experts a layer that it can train; 0 where a scheme chooses none.
    """

    client: int
    num_examples: float
    num_steps: float
    routing: RoutingStats
    changes: ModelState
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    expert_budget: int = 0

    def change(self, block: Block) -> Mapping[str, Tensor] | None:
        """Return the changes of a block by the tensor's name; None if it did not train it."""
        return block.of(self.changes)

    def norm(self, block: Block) -> float:
        """Return ‖Δ_i‖ of a block; 0 if the client did not train it."""
        tensors = self.change(block) or {}
        return float(norms([flatten(tensors, tensors)])) if tensors else 0.0

    def routing_of(self, name: str, block: Block) -> Tensor:
        """Return one routing statistic of an expert, a scalar, or of a gate's layer, ``[E]``."""
        return _of_block(self.routing, name, block)

    def __getitem__(self, statistic: Statistic) -> Tensors:
        """Return what the client measured of a statistic, by name."""
        return _with_prefix(self.statistics, f"{type(statistic).__name__}/")

    def measured(self, statistic: Statistic, name: str) -> Tensor | None:
        """Return one number of a statistic; None if the client left it out."""
        return self.statistics.get(f"{type(statistic).__name__}/{name}")


def _of_block(stats: RoutingStats, name: str, block: Block) -> Tensor:
    numbers = getattr(stats, name)
    if numbers is None:
        raise ValueError(f"{name}: not sent; hold Histogram(regions=True) in a field of the part")
    found: Tensor = numbers[block.key]
    return found


@dataclass(frozen=True)
class Limits:
    """How far beyond the median client what each of N clients measured may be.

    Attributes:
        share: times the median client's examples.
        length: times the median client's root mean square of the lengths of its features.
        spread: times the sampling error by which a client's mean of a class is away from others'.
        said: training examples that each client had by its own word in its last round, ``N``;
            infinity where it has not been in one.
    """

    share: float
    length: float
    spread: float
    said: tuple[float, ...]


class Kept(NamedTuple):
    """What is used of the numbers that a client measured.

    Attributes:
        numbers: by name; the same object where nothing was taken.
        factor: the smallest by which a part of them was multiplied, 1 for none.
    """

    numbers: Mapping[str, Tensor]
    factor: float = 1.0


@dataclass(frozen=True)
class RoundInfo:
    """What the server knows of a round before it combines the changes, in client order.

    Attributes:
        server_round: its number, from 1.
        num_examples, num_steps: of the clients, ``[N]`` float32.
        routing: N histograms of ``[L, E]`` tensors.
        statistics: of the clients, as :attr:`Reply.statistics`; or none.
        is_bounded: whether the guard made some of the statistics smaller, which were measured
            without training.
    """

    server_round: int
    num_examples: Tensor
    num_steps: Tensor
    routing: tuple[RoutingStats, ...]
    statistics: tuple[Mapping[str, Tensor], ...] = ()
    is_bounded: bool = False

    def routing_of(self, name: str, layer: int) -> Tensor:
        """Stack one routing statistic of one layer over the clients, ``[N, E]``."""
        return torch.stack([getattr(stats, name)[layer] for stats in self.routing])

    def total(self, statistic: Statistic) -> Tensors:
        """Return Σ_i of a statistic, by name, float32 in client order."""
        sums: Tensors = {}
        for found in self.statistics:
            for name, number in _with_prefix(found, f"{type(statistic).__name__}/").items():
                sums[name] = sums[name] + number if name in sums else number.float()
        return sums


@dataclass(frozen=True)
class BlockUpdates:
    """The changes of one block by the M clients that trained it, in client order.

    They may lie on the disk and are read when they are asked for: the sums below read one client's
    at a time, :attr:`deltas` all of them.

    Attributes:
        block: which one.
        members: M positions among the round's N clients.
        replies: of all N clients.
        values: the block's global values, which fix the order of names; copies, made when they are
            asked for.
        info: the round.
        pairs: how cosines between changes are worked out.
    """

    block: Block
    members: tuple[int, ...]
    replies: Sequence[Reply]
    values: Mapping[str, Tensor]
    info: RoundInfo
    pairs: PairRule

    @property
    def num_examples(self) -> Tensor:
        """The members' training examples, ``[M]``."""
        return self.info.num_examples[list(self.members)]

    @property
    def by_examples(self) -> Tensor:
        """n_i / Σ n over the members, ``[M]``."""
        return self.num_examples / self.num_examples.sum()

    @property
    def changes(self) -> list[Mapping[str, Tensor]]:
        """M members' changes by the tensor's name."""
        found = (self.replies[i].change(self.block) for i in self.members)
        return [change for change in found if change is not None]

    @property
    def rows(self) -> Sequence[Tensor]:
        """The members' changes, flattened: M vectors ``[P]``, each read when it is asked for."""
        if "deltas" in vars(self):
            return self.deltas.unbind()
        return _Rows(self.changes, self.values)

    @cached_property
    def deltas(self) -> Tensor:
        """The members' changes, flattened, ``[M, P]`` float32: all of them in memory."""
        return torch.stack([flatten(change, self.values) for change in self.changes])

    @cached_property
    def cosines(self) -> Tensor:
        """Cosines of the members' changes, ``[M, M]`` float64; worked out once.

        Beyond the limit of :attr:`pairs` they are those of random projections.
        """
        num_values = sum(change.numel() for change in self.changes[0].values())
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
        """Σ_i weights[i]·Δ_i, ``[P]`` float32.

        Args:
            weights: ``[M]``, or ``[M, R]`` for the R rows of a gate; its tensors of another length
                go by examples.
        """
        changes, sums = self.changes, {}
        for name in self.values:
            rows = [change[name] for change in changes]
            fits = weights.dim() == 1 or (rows[0].dim() > 0 and len(rows[0]) == weights.shape[1])
            sums[name] = weighted_sum(weights if fits else self.by_examples, rows)
        return flatten(sums, self.values)

    def routing_of(self, name: str) -> Tensor:
        """Return one routing statistic by member.

        ``[M]`` of an expert (regions ``[M, D]``), ``[M, E]`` of a gate's layer.
        """
        found = [_of_block(self.replies[i].routing, name, self.block) for i in self.members]
        return torch.stack(found)


ExpertUpdates = BlockUpdates  # by its older name


@dataclass(frozen=True)
class SharedUpdates:
    """What all N clients of a round train: dense tensors and gates, in client order.

    Without gates where each client keeps its own.

    Attributes:
        blocks: the dense tensors, and the gates.
        replies: of the clients.
        info: the round.
        root: changes of the server's own training, of all blocks; None unless a part holds
            ``RootChange``.
    """

    blocks: Sequence[Block]
    replies: Sequence[Reply]
    info: RoundInfo
    root: ModelState | None = None

    @property
    def num_examples(self) -> Tensor:
        """n_i, ``[N]``."""
        return self.info.num_examples

    @cached_property
    def gram(self) -> Tensor:
        """⟨Δ_i, Δ_j⟩ over all blocks, ``[N, N]`` float64; one block at a time is in memory.

        A client that did not send a block has 0 in it.
        """
        total = torch.zeros(len(self.replies), len(self.replies), dtype=torch.float64)
        for block in self.blocks:
            sent = [(i, reply.change(block)) for i, reply in enumerate(self.replies)]
            members = [i for i, change in sent if change is not None]
            rows = [flatten(change, change) for _, change in sent if change is not None]
            if rows:
                total[torch.tensor(members).unsqueeze(1), members] += gram(torch.stack(rows))
        return total

    @cached_property
    def norms(self) -> Tensor:
        """‖Δ_i‖ over all blocks, ``[N]`` float64."""
        return self.gram.diagonal().sqrt()

    @cached_property
    def root_norm(self) -> float:
        """‖Δ_0‖ of the server's own change over all blocks."""
        return sum(float(norms([row])) ** 2 for _, row in self._root_rows()) ** 0.5

    @cached_property
    def root_dots(self) -> Tensor:
        """⟨Δ_i, Δ_0⟩ with the server's own change over all blocks, ``[N]`` float64."""
        total = torch.zeros(len(self.replies), dtype=torch.float64)
        for block, root in self._root_rows():
            for i, reply in enumerate(self.replies):
                change = reply.change(block)
                if change is not None:
                    total[i] += dots([flatten(change, change)], root)[0]
        return total

    def _root_rows(self) -> Iterator[tuple[Block, Tensor]]:
        if self.root is None:
            raise ValueError("the server has no change of its own; hold RootChange() in a field")
        for block in self.blocks:
            change = block.of(self.root)
            if change is not None:
                yield block, flatten(change, change)

    @cached_property
    def distances(self) -> Tensor:
        """‖Δ_i − Δ_j‖², ``[N, N]`` float64."""
        squares = self.gram.diagonal()
        return (squares.unsqueeze(1) + squares - 2 * self.gram).clamp_min(0)


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
class Now:
    """What a step of the server sees, once a round, when everything is combined.

    Attributes:
        values: global values θ before the round, by full name.
        change: Δ by full name, 0 where nobody trained; empty for parts that only tell.
        info: the round.
    """

    values: Mapping[str, Tensor]
    change: Mapping[str, Tensor]
    info: RoundInfo

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.info.num_examples)

    def total(self, statistic: Statistic) -> Tensors:
        """Return Σ_i of a statistic over the clients, by name."""
        return self.info.total(statistic)


# -- on the client -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalClient:
    """What a scheme may ask of the client that it runs on.

    Attributes:
        client: the client's number, for messages.
        shape: of the model.
        expert_budget: experts a layer that the node says it can train, 1 to E; None if it does not.
        usage: runs the received model over at most that many local examples and returns their
            routing histogram. It costs forward passes, so call it only if needed.
        is_numbered: whether the node has a number that outlives its process.
    """

    client: int
    shape: ModelShape
    expert_budget: int | None
    usage: Callable[[int], RoutingStats]
    is_numbered: bool = True

    @property
    def number(self) -> int:
        """The client's number, the same in every round.

        Raises:
            ConfigError: the node has none.
        """
        if not self.is_numbered:
            raise ConfigError(NO_NUMBER)
        return self.client


NO_NUMBER = (
    "node config: this scheme tells clients apart by their number from start to start; "
    "give each SuperNode a partition-id of its own, beside its data-path"
)


@dataclass(frozen=True)
class LocalStep:
    """What a client's training step offers to a term of its loss.

    Attributes:
        parameters: trainable tensors by full name, with graph.
        received: the received values of the same tensors.
        router_probs: p(x, e) by layer, ``[T, E]`` with graph; empty but for a ``RouterTerm``.
        told: what the server sent, by signal; nothing in the first round.
        top_k: experts a token uses.
        kept: what this term kept in the client's last round; empty if nothing or lost.
        logits: of the batch's I items, examples or answer tokens, over C classes or the vocabulary,
            ``[I, C]`` float32 with graph; as the next four, empty where no part reads it.
        labels: the right classes, ``[I]``.
        label_counts: how often each class is right in all of the client's training examples,
            ``[C]`` float32.
        teacher: logits of the received model, ``[I, C]`` float32.
        features: what the classification head, or the output embeddings, see of each of the batch's
            B examples, ``[B, D]`` with graph.
        recalled: what the head of the model saw of the same examples when the client last sent sums
            without training, ``[B, D]`` float32; empty if it did not, or has lost it, or no
            ``Logits`` reads it.
        recalled_round: the round after which that was, 0 before the first; -1 if ``recalled`` is
            empty.
    """

    parameters: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    router_probs: Sequence[Tensor] = ()
    told: Mapping[Signal, Any] = field(default_factory=dict)
    top_k: int = 1
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Tensor = EMPTY
    labels: Tensor = EMPTY
    label_counts: Tensor = EMPTY
    teacher: Tensor = EMPTY
    features: Tensor = EMPTY
    recalled: Tensor = EMPTY
    recalled_round: int = -1


@dataclass(frozen=True)
class Outputs:
    """What a model made of some examples, without graph.

    Attributes:
        features: what the classification head sees, ``[I, D]`` float64.
        logits: ``[I, C]`` float32.
        labels: the right classes, ``[I]``.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Trained:
    """What came of a client's round.

    Attributes:
        received: the global values that it started from.
        changes: local − received: all gates and dense tensors, and the trained experts.
        kept: what this part kept before; empty if nothing or lost.
        told: what the server sent, by signal.
        gradient: mean over the steps of the task loss's gradient, by full name, without the terms;
            empty unless a part holds ``MeanGradient``.
    """

    received: ModelState
    changes: ModelState
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    told: Mapping[Signal, Any] = field(default_factory=dict)
    gradient: Mapping[str, Tensor] = field(default_factory=dict)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
