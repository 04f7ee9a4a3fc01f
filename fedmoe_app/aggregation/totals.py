"""What a client has sent in all of numbers that the server adds up, so that it stays usual.

SCAFFOLD's server adds up what clients send of their control variates, cᵢ⁺ − cᵢ, over all rounds.
A bound on one round's is not enough: whoever sends the same small step each round goes as far as it
likes. With C_i the sum of what the server took from client i, and d what it sends now, by block b,

    λ_i,b  the largest λ ≤ 1 with ‖C_i,b + λ·d_b‖ ≤ slack·m_k        (of a client that is beyond
           the bound already: where that norm is least)

and then one λ for all that it sent, by m_whole. Blocks and medians m_k are those of changes
(:mod:`fedmoe_app.aggregation.guard`), over ‖C_i,b + d_b‖ of the round, or of the last one where
that is larger. An honest client's sum is its cᵢ⁺, which is no longer than a gradient.

**A sketch** stands for C_i, which would be as large as the model for each client: 64 sums a block,
of its values times random signs in random places (Charikar et al., "Finding Frequent Items in Data
Streams", 2002). A sketch of a sum is the sum of the sketches, and ‖sketch‖ is ‖C‖ to about 9%, one
standard deviation. Who knew the places could hide there; so they are drawn from a key that nobody
knows before all have replied: a hash of the lengths of all that a first round's clients sent. That
takes no randomness of the system: one seed, one result.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.aggregation.medians import typical_norms
from fedmoe_app.moe.state import expert_of, gate_of

Sketch = Mapping[str, Tensor]  # [PLACES] float32, by block
PLACES = 64
_CHUNK = 1 << 20  # values that are sketched at once
WHOLE = "whole"


class Totals:
    """What each client of a run has sent so far.

    Args:
        slack: times the median norm that a sum may have.

    Attributes:
        key: of the places; "" before a round of a majority.
        typical: median norm by kind of the last round that had a majority.
        taken: client -> sketch of what was taken of it.
    """

    def __init__(self, slack: float) -> None:
        self._slack = slack
        self.key = ""
        self.typical: dict[str, float] = {}
        self.taken: dict[int, dict[str, Tensor]] = {}
        # Of a round that is not aggregated yet: what clients sent, and what is then taken of them.
        self._sent: dict[int, Sketch] = {}
        self._next: dict[int, dict[str, Tensor]] = {}

    # -- checkpoints -------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for :meth:`load`."""
        taken = {
            str(client): {block: packed(sums) for block, sums in own.items()}
            for client, own in self.taken.items()
        }
        return {"key": self.key, "typical": dict(self.typical), "taken": taken} if self.key else {}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on from what :meth:`dump` returned."""
        self.key = str(dumped.get("key", ""))
        self.typical = dict(dumped.get("typical", {}))
        self.taken = {
            int(client): {block: unpacked(text) for block, text in own.items()}
            for client, own in dumped.get("taken", {}).items()
        }

    # -- a round -----------------------------------------------------------------------------------

    def sketch(self, numbers: Mapping[str, Tensor], names: Collection[str]) -> Sketch:
        """Return the sketch of what a client sent now; empty while there is no key.

        Args:
            numbers: what it sent, by ``Statistic/name``.
            names: those that add up over rounds.
        """
        if not self.key:
            return {}
        found: dict[str, Tensor] = {}
        for name in sorted(name for name in names if name in numbers):
            block = block_of(name)
            own = sketched(numbers[name], f"{self.key} {name}")
            found[block] = found[block] + own if block in found else own
        return found

    def begin(self, lengths: Iterable[tuple[float, ...]]) -> None:
        """Draw the places from the lengths of what the clients of a first round sent, in order."""
        self.key = hashlib.sha256(repr(list(lengths)).encode()).hexdigest()

    def is_within(self, client: int, sent: Sketch) -> bool:
        """Whether what a client sends now is within the last round's bounds, with all before."""
        return all(
            norm <= self._slack * self.typical.get(kind, 0.0)
            for kind, norms in self._norms(client, sent).items()
            for norm in norms
        )

    def close(
        self, sent: Mapping[int, Sketch], summed: Collection[int]
    ) -> dict[int, dict[str, float]]:
        """Return λ < 1 of each client by block; of one within its bounds there is none.

        Args:
            sent: client -> the sketch of what it sends now.
            summed: clients of which all was taken already.
        """
        typical = self._typical_of(sent)
        bounds = {
            kind: self._slack * max(norm, self.typical.get(kind, 0.0))
            for kind, norm in (self.typical | typical).items()
        }
        factors: dict[int, dict[str, float]] = {}
        self._sent, self._next = dict(sent), {}
        for client, own in sent.items():
            found = {} if client in summed else self._factors(client, own, bounds)
            factors[client] = found
            before = self.taken.get(client, {})
            now = {
                block: _plus(before.get(block), own_sums, found.get(block, 1.0))
                for block, own_sums in own.items()
            }
            self._next[client] = {**before, **now}
        return factors

    def learn(self, clients: Collection[int]) -> None:
        """Note of these clients the round that :meth:`close` closed: it is the new global state."""
        self.typical |= self._typical_of({c: own for c, own in self._sent.items() if c in clients})
        self.taken |= {client: own for client, own in self._next.items() if client in clients}
        self._sent, self._next = {}, {}

    def _factors(self, client: int, sent: Sketch, bounds: Mapping[str, float]) -> dict[str, float]:
        before = self.taken.get(client, {})
        found = {
            block: most(before.get(block), sums, bounds.get(_kind_of(block)))
            for block, sums in sent.items()
        }
        if sent:
            nothing = torch.zeros(PLACES)
            old = torch.cat([before.get(block, nothing) for block in sent])
            new = torch.cat([found[block] * sums for block, sums in sent.items()])
            rest = most(old, new, bounds.get(WHOLE))
            found = {block: rest * factor for block, factor in found.items()}
        return {block: factor for block, factor in found.items() if factor < 1}

    def _norms(self, client: int, sent: Sketch) -> dict[str, list[float]]:
        """Return ‖C_i,b + d_b‖ by kind, of the blocks that it sends."""
        before = self.taken.get(client, {})
        found: dict[str, list[float]] = {}
        squares = 0.0
        for block, sums in sent.items():
            norm = float(torch.linalg.vector_norm(_plus(before.get(block), sums).double()))
            found.setdefault(_kind_of(block), []).append(norm)
            squares += norm**2
        return found | {WHOLE: [squares**0.5]} if sent else {}

    def _typical_of(self, sent: Mapping[int, Sketch]) -> dict[str, float]:
        return typical_norms([self._norms(client, own) for client, own in sent.items()])


def most(before: Tensor | None, sent: Tensor, bound: float | None) -> float:
    """Return the largest λ in [0, 1] with ‖before + λ·sent‖ ≤ bound.

    Where no λ is: the one at which that norm is least.

    Args:
        before: ``[P]``; None is 0.
        sent: ``[P]``.
        bound: None is none.
    """
    d = sent.double()
    c = torch.zeros_like(d) if before is None else before.double()
    if bound is None or float(torch.linalg.vector_norm(c + d)) <= bound:
        return 1.0
    square, product = float(d @ d), float(c @ d)
    if not square:
        return 1.0
    inside = product**2 - square * (float(c @ c) - bound**2)  # of ‖c + λ·d‖² = bound²
    root = max(inside, 0.0) ** 0.5
    return min(max((root - product) / square, 0.0), 1.0)


def sketched(values: Tensor, key: str) -> Tensor:
    """Return sums of values times random signs in random places, ``[PLACES]`` float32.

    Args:
        values: of any shape.
        key: from which signs and places are drawn.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(PLACES, dtype=torch.float64)
    for chunk in values.reshape(-1).split(_CHUNK):
        drawn = torch.randint(0, 2 * PLACES, chunk.shape, generator=generator)
        signed = chunk.double() * (1 - 2 * (drawn // PLACES))
        sums += torch.bincount(drawn % PLACES, signed, minlength=PLACES)
    return sums.float()


def block_of(name: str) -> str:
    """Return the block of a number that travels under ``Statistic/tensor``, its kind first."""
    statistic, key = name.split("/", 1)
    expert = expert_of(key)
    if expert is not None:
        return f"{statistic} expert {expert[0]}.{expert[1]}"
    return f"{statistic} {'dense' if gate_of(key) is None else 'gates'}"


def _kind_of(block: str) -> str:
    return " ".join(block.split(" ")[:2])


def _plus(before: Tensor | None, sent: Tensor, factor: float = 1.0) -> Tensor:
    own = sent if factor == 1 else factor * sent
    return own if before is None else before + own


def packed(sums: Tensor) -> str:
    """Return float32 sums as text for a checkpoint, exactly."""
    return base64.b64encode(sums.numpy().astype("<f4").tobytes()).decode()


def unpacked(text: str) -> Tensor:
    """Return what :func:`packed` was given."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32))
