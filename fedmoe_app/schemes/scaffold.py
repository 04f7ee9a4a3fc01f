"""SCAFFOLD: control variates against client drift.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
arXiv:1910.06378, algorithm 1, with S the clients of the round, P all clients:

    every step of client i:   g(θ) − c_i + c          in place of g(θ)
    after training:           c_i⁺ = mean over its steps of g(θ)
    server:                   c ← c + (1/P)·Σ_{i∈S} (c_i⁺ − c_i),   θ ← θ + (1/|S|)·Σ_{i∈S} Δ_i

The first line is the gradient of the loss plus ⟨c − c_i, θ⟩. The second is option II of the paper,
c_i − c + (θ_received − θ_local)/(K·η), written so that it also holds for other optimisers than
SGD: with SGD the two are the same. AdamW, which trains here, would make the printed difference
one of its own steps, not of gradients.

Decisions: c_i of an expert that the client did not train stays; an expert is corrected only in
steps in which a token reached it; the mean runs over these. What travels: down c, as large as the
model; up c_i⁺ − c_i, as large as the changes. A client that lost its c_i starts from 0 again.
The guard bounds what a client has sent over all rounds, which is its c_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.parts import (
    Client,
    Field,
    Keeps,
    MeanGradient,
    OfUpdate,
    Server,
    Signal,
    Step,
    Telling,
    WeightTerm,
)
from fedmoe_app.schemes.ranges import in_range, whole
from fedmoe_app.schemes.views import LocalStep, Now, Trained

BUILT_IN = {"scaffold": "Scaffold"}

C, GRADIENT = Signal("scaffold"), MeanGradient()
LARGEST = 1e4  # of a value of c


@dataclass(frozen=True)
class ControlVariate(WeightTerm, Keeps, OfUpdate):
    """c_i: corrects the loss, is kept on the node, and its change is sent."""

    c: Signal = C
    gradient: MeanGradient = GRADIENT

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return ⟨c − c_i, θ⟩; nothing in a first round, where both are 0."""
        c, own = step.told.get(self.c, {}), step.kept
        products = [
            ((c.get(key, _ZERO) - own.get(key, _ZERO)).to(parameter) * parameter).sum()
            for key, parameter in step.parameters.items()
            if key in c or key in own
        ]
        return torch.stack(products).sum() if products else None

    def keep(self, done: Trained) -> Tensors:
        """Keep c_i⁺; c_i where nothing was trained."""
        return {**done.kept, **done.gradient}

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """As large as the model; what was not trained is left out."""
        return {
            key: Field(shape, -LARGEST, LARGEST, optional=True, adds_up=True)
            for key, shape in shapes.items()
        }

    def of_update(self, done: Trained) -> Tensors:
        """Return c_i⁺ − c_i of what was trained."""
        return {key: g - done.kept.get(key, _ZERO) for key, g in done.gradient.items()}


_ZERO = torch.zeros(())
VARIATE = ControlVariate()


@dataclass(frozen=True)
class Control(Step, Telling):
    """c: summed up on the server and told to all."""

    population: int
    delta: ControlVariate = VARIATE
    c: Signal = C

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return c = 0."""
        return {key: torch.zeros_like(value) for key, value in values.items()}

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Leave the change as it is; add the clients' to c."""
        sent = now.total(self.delta)
        c = {key: old + sent.get(key, _ZERO) / self.population for key, old in state.items()}
        return dict(now.change), c

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Return c."""
        return {self.c: dict(state)}


@dataclass(frozen=True)
class Scaffold(Scheme):
    """SCAFFOLD.

    Attributes:
        population: P, the number of all clients, also of those that are not asked in a round.
    """

    population: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("scaffold", population=self.population)
        in_range("scaffold", population=(self.population, 1, None))

    def client(self, model: ModelShape) -> Client:
        """Correct the drift."""
        return Client(terms=(ControlVariate(),))

    def server(self, model: ModelShape) -> Server:
        """Average all alike, and keep c."""
        return Server(Equal(), Equal(), Equal(), steps=(Control(self.population),))
