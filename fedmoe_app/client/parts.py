"""The client's half of a scheme in one round: which part keeps what, and what the server is told.

What parts keep lies in one file a round (:mod:`fedmoe_app.client.state`). A part that keeps alone
has its own names there; where several do, each part's names begin with its slot: ``gates/``,
``experts/``, ``terms.0/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.faults import named
from fedmoe_app.schemes.parts import Keeps, OfReceived, OfUpdate, PersonalCopy, Start, Term
from fedmoe_app.schemes.unwritten import Unwritten
from fedmoe_app.schemes.views import Trained
from fedmoe_app.tasks.base import Score


class ClientParts:
    """The parts of one client in one round.

    Attributes:
        plan: both halves; what the server holds is measured here.
        personal: of the client's half.
        done: what came of the round, but for what each part kept; set it when it is trained.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.personal: PersonalCopy | None = plan.client.personal
        self.done: Trained | None = None
        client = plan.client
        slots: dict[str, Any] = {"gates": client.start_gates, "experts": client.start_experts}
        slots |= {f"terms.{i}": term for i, term in enumerate(client.terms)}
        self._keeping = {slot: part for slot, part in slots.items() if isinstance(part, Keeps)}
        self._kept: Mapping[str, Tensor] = {}

    @property
    def keeps_state(self) -> bool:
        """Whether the node stores anything between rounds."""
        return self.plan.keeps_state

    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Return the values that training starts from.

        Raises:
            KeyError, ValueError, RuntimeError: what was kept does not fit the model.
        """
        self._kept = kept
        started = received
        values = dict(received.named())
        for slot, part in self._keeping.items():
            own = self._of_slot(slot)
            if isinstance(part, Start) and own:
                unwritten = Unwritten("received", values=values)
                other = part.start(received, own)
                unwritten.check(part, "start")
                if slot == "gates":
                    started = replace(started, gates=other.gates)
                else:
                    started = replace(started, experts=other.experts)
            elif not isinstance(part, Start):
                _check_shapes(own, values)
        return started

    def keep(self, received: ModelState, changes: ModelState) -> Tensors:
        """Return what all parts keep for the client's next round.

        Raises:
            PartError: a part returned no tensors by name; an empty dict keeps nothing.
        """
        done = self.done or Trained(received, changes)
        return {
            f"{self._prefix(slot)}{name}": tensor
            for slot, part in self._keeping.items()
            for name, tensor in _kept_by(part, replace(done, kept=self._of_slot(slot))).items()
        }

    def terms(self) -> list[tuple[Term, Tensors]]:
        """Return the terms of the loss, with what each kept."""
        return [
            (term, self._of_slot(f"terms.{i}")) for i, term in enumerate(self.plan.client.terms)
        ]

    def measure(self, score: Score | None) -> Tensors:
        """Return the statistics that the server's parts hold, as they travel.

        Args:
            score: of the received model on the training examples; None if no part asks for it.
        """
        assert self.done is not None
        found: Tensors = {}
        for statistic in self.plan.measured:
            numbers: Tensors = {}
            if isinstance(statistic, OfUpdate):
                slots = [slot for slot, part in self._keeping.items() if part == statistic]
                kept = self._of_slot(slots[0]) if slots else {}
                with _unwritten(statistic, "of_update", self.done):
                    numbers = statistic.of_update(replace(self.done, kept=kept))
            elif isinstance(statistic, OfReceived) and score is not None:
                numbers = statistic.of_received(score)
            name = type(statistic).__name__
            found |= {f"{name}/{key}": t.detach().float().cpu() for key, t in numbers.items()}
        return found

    @property
    def needs_received_score(self) -> bool:
        """Whether a statistic reads the received model's score on the training examples."""
        return any(isinstance(statistic, OfReceived) for statistic in self.plan.measured)

    def _prefix(self, slot: str) -> str:
        return f"{slot}/" if len(self._keeping) > 1 else ""

    def _of_slot(self, slot: str) -> Tensors:
        if slot not in self._keeping:
            return {}
        prefix = self._prefix(slot)
        return {k.removeprefix(prefix): t for k, t in self._kept.items() if k.startswith(prefix)}


def _kept_by(part: Keeps, done: Trained) -> Mapping[str, Tensor]:
    with _unwritten(part, "keep", done):
        return named(part, "keep", "", part.keep(done))


@contextmanager
def _unwritten(part: object, method: str, done: Trained) -> Iterator[None]:
    """Refuse a part that writes to what is sent, or to what it started from."""
    changes, received = dict(done.changes.named()), dict(done.received.named())
    unwritten = Unwritten("done", changes=changes, received=received)
    yield
    unwritten.check(part, method)


def _check_shapes(kept: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in kept.items():
        if name in values and values[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}")
