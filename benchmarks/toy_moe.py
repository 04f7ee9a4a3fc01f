"""A federation in seconds: a toy MoE classifier, with the real halves of a scheme and wire checks.

Ten clients, eight classes of three clusters each, split by Dirichlet. The model is an embedding,
one MoE layer (8 experts, top-2) and a head; each example is a token. Clients train by Adam with the
scheme's own selection, terms and kept state. Updates go through the app's encoding and validation,
through its guard and its aggregation. Left out: Flower, and the personal copy of ``pflmoe``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.hostile import ATTACKS, LABELS, MEASURED
from fedmoe_app import (
    ClientUpdate,
    FedAvg,
    LocalClient,
    LocalStep,
    ModelShape,
    ModelState,
    Plan,
    RoutingStats,
    Scheme,
    TrainConfig,
)
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.guard import STRENGTHS, Guard
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.client.parts import ClientParts
from fedmoe_app.moe.routing import _Sums
from fedmoe_app.schemes.base import flat_signals, signals_of
from fedmoe_app.schemes.parts import InBatch, Once, RouterTerm
from fedmoe_app.schemes.views import Trained
from fedmoe_app.server.measuring import specs_of
from fedmoe_app.tasks.base import Score
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.records import UpdateSpec, decode_update, encode_update

CLIENTS, ROUNDS, CLASSES, CLUSTERS = 10, 20, 8, 3
DIM, HIDDEN, EXPERTS, TOP_K = 24, 16, 8, 2
BATCH, EPOCHS, LEARNING_RATE = 64, 1, 1e-2
TRAIN, TEST, LEAST, ROOT = 3000, 2000, 24, 100
SHAPE = ModelShape(1, EXPERTS, TOP_K, DIM, head="head.weight")
# Honest examples are half as long as the longest, as texts are: a forger can claim twice as much.
BOUNDS = TaskBounds(
    TrainConfig(per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS),
    max_length=2,
    top_k=TOP_K,
)
# Positions of the median client and of those next to it in size, see _Data.
_OF_USUAL_SIZE = (CLIENTS - 1, 4, 5, 3)
Data = tuple[Tensor, Tensor]  # [N, DIM], [N]


@dataclass(frozen=True)
class Outcome:
    """What came of a federation.

    Attributes:
        accuracy: of the global model on held-out examples.
        refused: replies, over all rounds.
        clipped: replies of honest clients that the guard made smaller.
        capped: replies of honest clients that counted for less than they have.
    """

    accuracy: float
    refused: int
    clipped: int
    capped: int


def federate(
    scheme: Scheme, attack: str, guard: str, alpha: float, seed: int, hostile: int = 1
) -> Outcome:
    """Train a federation in which some clients lie; all of these see what the others sent.

    Args:
        scheme: both halves.
        attack: of :data:`benchmarks.hostile.ATTACKS`, or of ``MEASURED`` there.
        guard: "off", or a name of :data:`fedmoe_app.aggregation.guard.STRENGTHS`.
        alpha: of the Dirichlet split.
        seed: of data, model and batches.
        hostile: clients that lie, those of the most usual size; 4 at most.
    """
    torch.manual_seed(seed)
    data = _Data(alpha)
    strength = STRENGTHS.get(guard)
    server = _Server(scheme, None if strength is None else Guard(strength), data.root)
    clients = [_Client(i, own, server.plan) for i, own in enumerate(data.parts)]
    liars, lie = set(_OF_USUAL_SIZE[:hostile]), (ATTACKS | MEASURED)[attack]
    for client in clients:
        if attack == LABELS and client.number in liars:
            client.labels = CLASSES - 1 - client.labels
    for server_round in range(1, ROUNDS + 1):
        trained = [client.train(server_round, server.state, server.told) for client in clients]
        others = [update for update in trained if update.client not in liars]
        lies = {i: lie(trained[i], others, BOUNDS) for i in liars}
        server.round(server_round, [lies.get(own.client, own) for own in trained], liars)
    with torch.no_grad():
        logits, *_ = _forward(_stacked(server.state), data.test[0])
    accuracy = float((logits.argmax(1) == data.test[1]).double().mean())
    return Outcome(accuracy, server.refused, server.clipped, server.capped)


class _Data:
    """Clusters around random centres, split by class; the server has some of the training rows."""

    def __init__(self, alpha: float) -> None:
        centres = 0.8 * torch.randn(CLASSES, CLUSTERS, DIM)

        def draw(number: int) -> Data:
            labels = torch.randint(0, CLASSES, (number,))
            own = centres[labels, torch.randint(0, CLUSTERS, (number,))]
            return own + 0.9 * torch.randn(number, DIM), labels

        (x, y), self.test = draw(TRAIN), draw(TEST)
        shares = torch.distributions.Dirichlet(torch.full((CLIENTS,), alpha)).sample((CLASSES,))
        owner = torch.multinomial(shares[y], 1).squeeze(1)
        rows = [(owner == i).nonzero().flatten() for i in range(CLIENTS)]
        # A client with next to nothing is given some.
        rows = [r if len(r) >= LEAST else torch.randint(0, TRAIN, (LEAST,)) for r in rows]
        rows.sort(key=len)
        # Who lies, at the end, has as much as the median client: its weight is no luck.
        rows = rows[:5] + rows[5 + 1 :] + rows[5 : 5 + 1]
        self.parts = [(x[r], y[r]) for r in rows]
        self.root = x[:ROOT], y[:ROOT]


# -- the model, its experts stacked while it is trained ----------------------------------------


def _initial() -> ModelState:
    dense = {
        "embed.weight": 0.2 * torch.randn(DIM, DIM),
        "head.weight": 0.3 * torch.randn(HIDDEN, CLASSES),
    }
    experts = {
        (0, e): {
            "up.weight": 0.25 * torch.randn(DIM, HIDDEN),
            "down.weight": 0.25 * torch.randn(HIDDEN, HIDDEN),
        }
        for e in range(EXPERTS)
    }
    return ModelState(dense, {0: {"weight": 0.3 * torch.randn(EXPERTS, DIM)}}, experts)


def _stacked(state: ModelState) -> dict[str, Tensor]:
    experts = [state.experts[0, e] for e in range(EXPERTS)]
    return {
        **state.dense,
        "gate": state.gates[0]["weight"],
        **{name: torch.stack([own[name] for own in experts]) for name in experts[0]},
    }


def _by_key(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name stacked tensors as the schemes' parts know them; views, with their graph."""
    named = {key: values[key] for key in ("embed.weight", "head.weight")}
    named["layers.0.gate.weight"] = values["gate"]
    for e in range(EXPERTS):
        for name in ("up.weight", "down.weight"):
            named[f"layers.0.experts.{e}.{name}"] = values[name][e]
    return named


def _forward(values: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits ``[T, C]``, p(x, e) ``[T, E]``, chosen ``[T, K]`` and the router's input."""
    hidden = torch.tanh(x @ values["embed.weight"]) + x
    probs = (hidden @ values["gate"].T).softmax(dim=1)
    top = probs.topk(TOP_K, dim=1)
    weights = torch.zeros_like(probs).scatter(1, top.indices, top.values)
    inner = torch.einsum("td,edh->teh", hidden, values["up.weight"]).relu()
    out = torch.einsum("teh,ehk->tek", inner, values["down.weight"])
    logits = (weights.unsqueeze(2) * out).sum(dim=1) @ values["head.weight"]
    return logits, probs, top.indices, hidden


class _Client:
    """A client, with what it keeps between rounds."""

    def __init__(self, number: int, data: Data, plan: Plan) -> None:
        self.number, self.plan = number, plan
        self.inputs, self.labels = data
        self._kept: dict[str, Tensor] = {}

    def train(self, server_round: int, received: ModelState, told: dict[str, Tensor]) -> Any:
        """Train for a round; return the update."""
        parts = ClientParts(self.plan)
        start = _stacked(received)
        started = parts.start(received, self._kept) if self._kept else received
        own = LocalClient(self.number, SHAPE, None, lambda most: self._usage(start))
        select = self.plan.client.select
        chosen = set(select.choose(own)[0]) if isinstance(select, Once) else set(range(EXPERTS))
        values = {name: t.clone().requires_grad_() for name, t in _stacked(started).items()}
        optimiser = torch.optim.Adam(values.values(), LEARNING_RATE)
        mean = _Gradients() if self.plan.needs_gradient else None
        sums, trained, total = _Sums(EXPERTS), torch.zeros(EXPERTS, dtype=torch.int64), 0.0
        steps = list(self._batches())
        for rows in steps:
            logits, probs, experts, hidden = _forward(values, self.inputs[rows])
            with torch.no_grad():
                sums.add(probs, experts, hidden if self.plan.needs_regions else None)
            loss = torch.nn.functional.cross_entropy(logits, self.labels[rows])
            total += float(loss.detach())
            own_loss = loss
            loss = loss + self._terms(parts, values, received, told, probs)
            optimiser.zero_grad()
            loss.backward(retain_graph=mean is not None)
            if mean is not None:
                mean.add(values, own_loss, experts)
            active = self._active(select, chosen, probs.detach(), experts, own)
            for name in ("up.weight", "down.weight"):
                gradient = values[name].grad
                assert gradient is not None
                gradient[~active] = 0
            trained += active
            optimiser.step()
        trained = trained * (sums.count > 0)
        changes = self._changes(values, received, trained)
        own_gradient = {} if mean is None else mean.mean(set(dict(changes.named())))
        parts.done = Trained(received, changes, told=signals_of(told), gradient=own_gradient)
        measured = parts.measure(self._score(start) if parts.needs_received_score else None)
        self._kept = parts.keep(received, changes)
        columns = {name: column.unsqueeze(0) for name, column in sums.finish().items()}
        routing = RoutingStats(**columns, trained=trained.unsqueeze(0))
        metrics = {"train-loss": total / len(steps), "num-steps": float(len(steps))}
        return ClientUpdate(
            *(self.number, len(self.inputs), changes, routing, metrics, CLIENTS),
            server_round=server_round,
            statistics=measured,
        )

    def _batches(self) -> Iterator[Tensor]:
        for _ in range(EPOCHS):
            yield from torch.randperm(len(self.inputs)).split(BATCH)

    def _active(
        self, select: Any, chosen: set[int], probs: Tensor, experts: Tensor, own: LocalClient
    ) -> Tensor:
        """Return which experts a step trains, ``[E]`` bool."""
        routed = torch.zeros(EXPERTS, dtype=torch.bool)
        routed[experts.reshape(-1)] = True
        if isinstance(select, InBatch):
            return select.choose(probs, routed, own)
        return routed & torch.tensor([e in chosen for e in range(EXPERTS)])

    def _terms(
        self,
        parts: ClientParts,
        values: dict[str, Tensor],
        received: ModelState,
        told: dict[str, Tensor],
        probs: Tensor,
    ) -> Tensor:
        total = torch.zeros(())
        for term, kept in parts.terms():
            step = LocalStep(
                *(_by_key(values), dict(received.named())),
                (probs,) if isinstance(term, RouterTerm) else (),
                *(signals_of(told), TOP_K, kept),
            )
            if (found := term.loss(step)) is not None:
                total = total + found
        return total

    def _changes(
        self, values: dict[str, Tensor], received: ModelState, trained: Tensor
    ) -> ModelState:
        changes, before = ModelState(), dict(received.named())
        for key, value in _by_key({name: t.detach() for name, t in values.items()}).items():
            expert = key.split(".")[3] if ".experts." in key else None
            if expert is None or trained[int(expert)] > 0:
                changes.insert(key, value - before[key])
        return changes

    @torch.no_grad()
    def _score(self, values: dict[str, Tensor]) -> Score:
        logits, *_ = _forward(values, self.inputs)
        loss = torch.nn.functional.cross_entropy(logits, self.labels, reduction="sum")
        return Score(float(loss), 0, len(self.labels))

    @torch.no_grad()
    def _usage(self, values: dict[str, Tensor]) -> RoutingStats:
        _, probs, experts, _ = _forward(values, self.inputs)
        sums = _Sums(EXPERTS)
        sums.add(probs, experts, None)
        columns = {name: column.unsqueeze(0) for name, column in sums.finish().items()}
        return RoutingStats(**columns, trained=torch.zeros(1, EXPERTS, dtype=torch.int64))


class _Gradients:
    """Mean over the steps of the loss's gradient without terms; of an expert, its own steps."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def add(self, values: dict[str, Tensor], loss: Tensor, experts: Tensor) -> None:
        """Add a step's; ``experts`` were chosen, ``[T, K]``."""
        found = torch.autograd.grad(loss, list(values.values()))
        reached = {str(e) for e in experts.unique().tolist()}
        for key, tensor in _by_key(dict(zip(values, found, strict=True))).items():
            if ".experts." not in key or key.split(".")[3] in reached:
                self._sums[key] = self._sums.get(key, torch.zeros(())) + tensor
                self._steps[key] = self._steps.get(key, 0) + 1

    def mean(self, keys: set[str]) -> dict[str, Tensor]:
        """Return the means of these tensors."""
        return {k: sums / self._steps[k] for k, sums in self._sums.items() if k in keys}


class _Server:
    """Checks, guards and aggregates the updates of a round."""

    def __init__(self, scheme: Scheme, guard: Guard | None, root: Data) -> None:
        self.plan, self.guard = Plan.of(scheme, SHAPE), guard
        self._own = _Client(-1, root, Plan.of(FedAvg(), SHAPE))
        self.state = _initial()
        self.told: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] | None = None
        region = DIM if self.plan.needs_regions else 0
        self._spec = replace(
            UpdateSpec.of(self.state, region),
            statistics=specs_of(self.plan.measured, self.state),
        )
        self.refused = self.clipped = self.capped = 0

    def round(self, server_round: int, sent: Sequence[ClientUpdate], liars: set[int]) -> None:
        """Make the next global state."""
        updates = self._guarded([u for u in map(self._checked, sent) if u is not None], liars)
        info = round_info(server_round, updates)
        root = self._root(server_round) if self.plan.needs_root else None
        outcome = aggregate(self.state, updates, self.plan, info, self._steps, root=root)
        state = ModelState()
        for key, tensor in outcome.tensors:
            state.insert(key, tensor)
        self.state, self._steps = state, outcome.state
        self.told = flat_signals(outcome.told)

    def _root(self, server_round: int) -> ModelState:
        """Train on the server's own rows; the clients' batches are those of the other rules."""
        with torch.random.fork_rng():
            torch.manual_seed(server_round)
            changes: ModelState = self._own.train(server_round, self.state, {}).changes
        return changes

    def _checked(self, update: ClientUpdate) -> ClientUpdate | None:
        try:
            return decode_update(encode_update(update), self._spec, bounds=BOUNDS)
        except InvalidUpdateError:
            self.refused += 1
            return None

    def _guarded(self, updates: list[ClientUpdate], liars: set[int]) -> list[ClientUpdate]:
        if self.guard is None:
            return updates
        sizes = {u.client: self.guard.size_of(u, self._spec.statistics) for u in updates}
        updates, verdict = self.guard.close([*map(self.guard.counted, updates)], sizes, ())
        self.guard.learn({update.client: sizes[update.client] for update in updates})
        honest = [update for update in updates if update.client not in liars]
        self.clipped += sum(verdict.factors[update.client] < 1 for update in honest)
        self.capped += sum(update.counted < update.num_examples for update in honest)
        return updates
