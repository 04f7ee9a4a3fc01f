"""Which way a run goes, so that a reply that goes the other way counts for less.

No bound on sizes sees a change with its sign turned. With û_i = Δ_i/‖Δ_i‖ and g the direction that
the rounds before took,

    c_i = ⟨û_i, g⟩                          how far a reply goes along
    m   = median_j c_j                      what is usual, and how far clients are apart: all of
    d   = max(median_j |c_j − m|,           them, and those of whom none turns back
              median_{j: c_j ≥ m} c_j − m)
    t   = min(0, m − 2·d)                   so far back a client may go
    f_i = min(1, max(0, 1 − 2·(t − c_i)/m))  if m > ‖g‖/32; else f_i = 1
    g   ← ½·g + ½·Σ_i f_i·û_i               each client has one vote, however long its change is

A reply that goes along stays as it is, bit for bit; so does one that goes back where honest clients
are that far apart, as under label skew. One that goes further back than that by half of what the
median client goes forward counts for nothing. A round in which the median client goes back, as
after too long a step, is left alone; so is one in which it goes forward by no more than a sketch
may err. Among a few replies one that is honest and unlike the others cannot be told from one that
lies: there must be :attr:`~fedmoe_app.aggregation.guard.Strength.direction` of them.

**A sketch** of :data:`PLACES` numbers stands for a change: pieces of each tensor are added up, each
with random signs and turned round by a random number of places, which keeps ⟨a, b⟩ to about
‖a‖·‖b‖/√PLACES (after Charikar et al., "Finding Frequent Items in Data Streams", 2002). A random
place for each value, as in :func:`~fedmoe_app.aggregation.totals.sketched`, takes too long for a
whole model. Who knew the places could seem to go along; so they are drawn as there, from what no
client knows of the others before a first round's clients have replied. So g is there after a run's
second round and acts from its third on.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.aggregation.totals import packed, unpacked
from fedmoe_app.moe.state import ModelState

PLACES = 1 << 14
_KEPT = 0.5  # of the direction so far
_APART = 2.0  # times d
_STRICT = 2.0  # times (t − c_i)/m that is taken off
_ERROR = 4 / PLACES**0.5  # of ‖g‖, four standard errors of c


class Direction:
    """The direction of a run, and how far replies go along with it.

    Args:
        least: replies that a round must have; 0 looks at none.

    Attributes:
        key: of the places; "" before a round of so many.
        way: g, ``[PLACES]`` float32; None before there is one.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self.key = ""
        self.way: Tensor | None = None
        self._factors: dict[int, float] = {}  # of the round that was closed last

    # -- checkpoints -------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for :meth:`load`."""
        if not self.key:
            return {}
        return {"key": self.key, "way": None if self.way is None else packed(self.way)}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on from what :meth:`dump` returned; not where no reply is looked at any more."""
        if not self._least:
            return
        self.key = str(dumped.get("key", ""))
        way = dumped.get("way")
        self.way = None if way is None else unpacked(way)

    # -- a round -----------------------------------------------------------------------------------

    def begin(self, lengths: Sequence[tuple[float, ...]]) -> None:
        """Draw the places from the lengths of all that a first round's clients sent, in order."""
        told = sum(any(own) for own in lengths)
        if self._least and not self.key and told >= self._least:
            self.key = hashlib.sha256(repr(list(lengths)).encode()).hexdigest()

    def sketch(self, changes: ModelState, norm: float) -> Tensor | None:
        """Return the sketch of û_i, ``[PLACES]`` float32; None while there is no key.

        Args:
            changes: Δ_i.
            norm: ‖Δ_i‖.
        """
        if not self.key:
            return None
        sums = torch.zeros(PLACES)
        for name, tensor in changes.named():
            _add(sums, tensor, f"{self.key} {name}")
        return sums / norm if norm else sums

    def along(self, sketch: Tensor | None) -> float:
        """Return c_i of a reply; 0 where nothing is known."""
        if sketch is None or self.way is None:
            return 0.0
        return float(sketch.double() @ self.way.double())

    def close(self, sketches: Mapping[int, Tensor | None]) -> dict[int, float]:
        """Return f_i by client.

        Args:
            sketches: of the round's replies, by client.
        """
        forward = {client: self.along(sketch) for client, sketch in sketches.items()}
        self._factors = self._factors_of(forward)
        return dict(self._factors)

    def _factors_of(self, forward: Mapping[int, float]) -> dict[int, float]:
        whole = dict.fromkeys(forward, 1.0)
        if self.way is None or len(forward) < self._least:
            return whole
        median = statistics.median(forward.values())
        if median <= _ERROR * float(torch.linalg.vector_norm(self.way, dtype=torch.float64)):
            return whole
        apart = max(
            statistics.median(abs(own - median) for own in forward.values()),
            statistics.median(own - median for own in forward.values() if own >= median),
        )
        back = min(0.0, median - _APART * apart)
        return {
            client: min(1.0, max(0.0, 1 - _STRICT * (back - own) / median))
            for client, own in forward.items()
        }

    def learn(self, sketches: Mapping[int, Tensor | None]) -> None:
        """Note the round that :meth:`close` closed: these replies are the new global state."""
        known = [(client, own) for client, own in sorted(sketches.items()) if own is not None]
        # Those that were left out count: g must not stay as it is because of them.
        if known and max(len(known), len(self._factors)) >= self._least:
            now = torch.zeros(PLACES)
            for client, own in known:
                now.add_(own, alpha=self._factors.get(client, 1.0))
            self.way = now if self.way is None else _KEPT * self.way + (1 - _KEPT) * now
        self._factors = {}


def _add(sums: Tensor, tensor: Tensor, key: str) -> None:
    """Add the pieces of a tensor to the sums, each turned round by a random number of places.

    Args:
        sums: ``[PLACES]``.
        tensor: of any shape.
        key: from which places and signs are drawn.
    """
    pieces = tensor.reshape(-1).float().split(PLACES)
    drawn = hashlib.shake_256(key.encode()).digest(PLACES // 8 + 2 * len(pieces))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8, PLACES // 8))
    signs = torch.from_numpy(1 - 2 * bits.astype(np.float32))  # [PLACES]
    numbers = np.frombuffer(drawn, "<u2", offset=PLACES // 8).tolist()
    for piece, number in zip(pieces, numbers, strict=True):
        place, sign = number % PLACES, 1 - 2 * (number // PLACES % 2)
        signed = piece * signs[: len(piece)]  # [P]
        fits = min(len(signed), PLACES - place)
        sums[place : place + fits].add_(signed[:fits], alpha=sign)
        sums[: len(signed) - fits].add_(signed[fits:], alpha=sign)
