"""Hidden states of a frozen prefix that outlive a run, for studies of many runs of one model.

A run drops what its clients keep, as it should. A study asks for the same texts, cut to the same
length, in every one of its runs: here they are computed once, and found by their tokens. The
bits are the same, since hidden states depend on nothing but the model and the tokens
(:mod:`fedmoe_app.moe.prefix.replay`); so a folder belongs to one model on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import load_file, save_file
from torch import Tensor

from fedmoe_app.client import prefix as client_prefix
from fedmoe_app.moe.prefix.states import HiddenStates

_kept: dict[Path, HiddenStates] = {}  # of this process
_BYTES = 4 * 2**30


@contextmanager
def shared_prefix(folder: Path) -> Iterator[None]:
    """Inside, whatever asks for hidden states finds those of the folder; new ones are added."""
    kept = _kept.setdefault(folder, HiddenStates(_BYTES))
    for file in sorted(folder.glob("*.safetensors")):
        if file.stat().st_size and file not in _read:
            kept.add_piece(load_file(file))
            _read.add(file)
    own_get = HiddenStates.get

    def get(self: HiddenStates, token_ids: Sequence[int]) -> Tensor | None:
        found = own_get(kept, token_ids)
        return own_get(self, token_ids) if found is None else found

    def put(self: HiddenStates, token_ids: Sequence[int], hidden: Tensor) -> None:
        own_put(kept, token_ids, hidden.clone())

    own_put = HiddenStates.put
    with (
        patch.object(HiddenStates, "get", get),
        patch.object(HiddenStates, "put", put),
        # One trial of the model in the first run says as much as one a client and round.
        patch.object(client_prefix, "tried", lambda config, setup, prefix: prefix),
    ):
        yield
    if new := kept.take_new():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{os.getpid()}-{len(_read)}.safetensors"
        save_file(new, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
        _read.add(file)


_read: set[Path] = set()
