"""Hidden states after the frozen prefix, by the tokens that they are of.

A sequence is known by a hash of its token ids, so a lookup needs no other name for it, and a file
of them does not hold the text itself. (Hidden states can be turned back into text: they are as
private as it.)

Shapes: T tokens of a sequence, N tokens of a piece in all, R sequences, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_DIGEST = 16  # bytes


class HiddenStates:
    """Hidden states of many sequences, on the CPU.

    Args:
        limit: bytes that it holds at most. What comes when it is full is not kept, and computed
            again when it is asked for, to the same bits.

    Attributes:
        size: bytes that it holds.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: dict[bytes, Tensor] = {}
        self._new: dict[bytes, Tensor] = {}
        self.size = 0

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._found)

    def __deepcopy__(self, memo: object) -> HiddenStates:
        """Be the same for a copy of the model: its prefix is the same, too."""
        return self

    def get(self, token_ids: Sequence[int]) -> Tensor | None:
        """Return the hidden states of a sequence, ``[T, D]``; None if they are not there."""
        return self._found.get(_key(token_ids))

    def put(self, token_ids: Sequence[int], hidden: Tensor) -> None:
        """Keep the hidden states of a sequence, ``[T, D]``, if there is room."""
        key = _key(token_ids)
        if key not in self._found and self.size + hidden.nbytes <= self._limit:
            self._add(key, hidden)
            self._new[key] = hidden

    def add_piece(self, piece: dict[str, Tensor]) -> None:
        """Take in what :meth:`take_new` returned, as it came from a file.

        Raises:
            KeyError, RuntimeError, ValueError: it is none.
        """
        keys, lengths = piece["keys"], piece["lengths"].tolist()
        parts = piece["hidden"].split(lengths)
        for key, hidden in zip(keys.numpy(), parts, strict=True):
            self._add(key.tobytes(), hidden)

    def take_new(self) -> dict[str, Tensor]:
        """Return what was put since the last call, as tensors for a file; empty if nothing was.

        They are ``keys [R, 16]`` uint8, ``lengths [R]`` int64 and ``hidden [N, D]``.
        """
        if not self._new:
            return {}
        keys = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, _DIGEST)
        parts = list(self._new.values())
        self._new = {}
        return {
            "keys": torch.from_numpy(keys.copy()),
            "lengths": torch.tensor([len(part) for part in parts]),
            "hidden": torch.cat(parts),
        }

    def _add(self, key: bytes, hidden: Tensor) -> None:
        if key not in self._found:
            self._found[key] = hidden
            self.size += hidden.nbytes


def _key(token_ids: Sequence[int]) -> bytes:
    ids = np.asarray(token_ids, dtype="<i8").tobytes()
    return hashlib.blake2b(ids, digest_size=_DIGEST).digest()
