"""Combination: the parts of several schemes in one.

    selection   which experts a client trains             hfedmoe, fedmoe, ...
    loss        what the local loss is, or adds           fedprox, fedalign, fedntd, ...
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
    """Selection, loss, gates and experts, each as another scheme has it."""

    selection: Scheme = PLAIN
    loss: Scheme = PLAIN
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
        halves = {slot: scheme.client(model) for slot, scheme in self._schemes()}
        return Client(
            select=halves["selection"].select,
            loss=halves["loss"].loss,
            terms=halves["loss"].terms,
            start_gates=halves["gates"].start_gates,
            start_experts=halves["experts"].start_experts,
        )

    def server(self, model: ModelShape) -> Server:
        """Take from each scheme's half what it is here for; probes by what they look at."""
        halves = {slot: scheme.server(model) for slot, scheme in self._schemes()}
        return Server(
            gates=halves["gates"].gates,
            experts=halves["experts"].experts,
            # What is told is told to the loss; a part that tells no signal only warns.
            steps=tuple(
                dict.fromkeys(
                    step
                    for slot in ("loss", "gates", "experts")
                    for step in halves[slot].steps
                    if isinstance(step, Telling) and (slot == "loss" or not _signals(step))
                )
            ),
            probes=tuple(
                probe
                for slot, half in halves.items()
                for probe in half.probes
                if getattr(probe, "of", slot) == slot
            ),
        )

    def _schemes(self) -> Iterator[tuple[str, Scheme]]:
        for slot in ("selection", "loss", "gates", "experts"):
            yield slot, getattr(self, slot)


def _signals(part: Telling) -> list[Signal]:
    return [signal for signal in parts_in(part) if isinstance(signal, Signal)]
