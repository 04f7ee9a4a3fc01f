"""Combination: the parts of several schemes in one.

    selection   which experts a client trains             hfedmoe, fedmoe, ...
    loss        what the local loss is, or adds           fedprox, fedalign, fedntd, ...; several
    gates       how gates are averaged, or kept           fedalign, hfedmoe, ...
    experts     how an expert's changes are combined      fcmoe, fedalign, hfedmoe, ...

Each part runs with the parameters of its own table in the run config. Dense tensors go by n_i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, Server, Signal, Telling, parts_in

PLAIN = Scheme()


@dataclass(frozen=True)
class Combination(Scheme):
    """Selection, loss, gates and experts, each as another scheme has it.

    Attributes:
        loss: of one scheme or of several, whose terms add up; one of them at most may take the
            place of the task's own loss.
    """

    selection: Scheme = PLAIN
    loss: Scheme | tuple[Scheme, ...] = PLAIN
    gates: Scheme = PLAIN
    experts: Scheme = PLAIN

    def check(self, run: Run) -> Sequence[str]:
        """Let every part check itself."""
        # The other parts' own ways with gates are not used, be the gates frozen or not.
        others = replace(run, model=replace(run.model, gates_trained=True))
        return [
            warning
            for slot, scheme in self._schemes()
            for warning in scheme.check(run if slot == "gates" else others)
        ]

    def client(self, model: ModelShape) -> Client:
        """Take from each scheme's half what it is here for."""
        losses = [scheme.client(model) for scheme in self._losses]
        instead = list(dict.fromkeys(half.loss for half in losses if half.loss is not None))
        if len(instead) > 1:
            raise ValueError(
                f"combine.loss: {' and '.join(type(part).__name__ for part in instead)} both take "
                "the place of the task's own loss; choose one of them"
            )
        return Client(
            select=self.selection.client(model).select,
            loss=instead[0] if instead else None,
            terms=tuple(dict.fromkeys(term for half in losses for term in half.terms)),
            start_gates=self.gates.client(model).start_gates,
            start_experts=self.experts.client(model).start_experts,
        )

    def server(self, model: ModelShape) -> Server:
        """Take from each scheme's half what it is here for; probes by what they look at."""
        halves = [(slot, scheme.server(model)) for slot, scheme in self._schemes()]
        return Server(
            gates=self.gates.server(model).gates,
            experts=self.experts.server(model).experts,
            # What is told is told to the loss; a part that tells no signal only warns.
            steps=tuple(
                dict.fromkeys(
                    step
                    for slot, half in halves
                    if slot != "selection"
                    for step in half.steps
                    if isinstance(step, Telling) and (slot == "loss" or not _signals(step))
                )
            ),
            probes=tuple(
                probe
                for slot, half in halves
                for probe in half.probes
                if getattr(probe, "of", slot) == slot
            ),
        )

    def _schemes(self) -> Iterator[tuple[str, Scheme]]:
        yield "selection", self.selection
        yield from (("loss", scheme) for scheme in self._losses)
        yield from (("gates", self.gates), ("experts", self.experts))

    @property
    def _losses(self) -> tuple[Scheme, ...]:
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)


def _signals(part: Telling) -> list[Signal]:
    return [signal for signal in parts_in(part) if isinstance(signal, Signal)]
