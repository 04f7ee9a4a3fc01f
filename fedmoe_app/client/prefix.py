"""A client's frozen prefix: its hidden states lie on the node's disk between rounds.

::

    $FEDMOE_HOME/clients/<run key>/client-3/prefix/<key>-0.safetensors    pieces, in the order in
    $FEDMOE_HOME/clients/<run key>/client-3/prefix/<key>-1.safetensors    which they were computed

The key changes with all that the hidden states depend on but for the tokens, by which they are
found; files of another key are dropped. A file that is lost, or that there is no room for, costs
time only. They go with the client's other files, and in any case when the run ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
import transformers
from safetensors.torch import load_file, save

from fedmoe_app.client.rows import ClientRows
from fedmoe_app.client.store import PREFIX, ClientStore
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.prefix.find import Prefix
from fedmoe_app.moe.prefix.replay import replayed
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.tasks.prefix import MIB, frozen_prefix, pays, tried
from fedmoe_app.tasks.setup import Setup

_VERSION = 1  # raise it whenever the same sequence would get other hidden states

logger = logging.getLogger("fedmoe")


@contextmanager
def prefix_once(
    config: RunConfig, setup: Setup, rows: ClientRows, run_key: str, client: int
) -> Iterator[HiddenStates | None]:
    """Compute the model's frozen prefix at most once for each text inside, if that pays.

    Gives what is kept; None where nothing is.

    Args:
        config: of the run.
        setup: the model, with what is trained opened.
        rows: the client's examples.
        run_key: the server's.
        client: its number.

    Raises:
        ConfigError: ``train.prefix-cache = "on"``, and there is no such prefix.
    """
    prefix = frozen_prefix(config, setup)
    seen = chain(rows.train, rows.test)
    if prefix is None or not pays(config.train, setup, seen, len(rows.train)):
        yield None
        return
    files = _Files(run_key, client, _key(config, setup, prefix))
    states = HiddenStates(config.train.prefix_cache_mib * MIB)
    if not files.load(states) and tried(config, setup, prefix) is None:
        yield None
        return
    with replayed(prefix, states):
        yield states
    if files.save(states):
        size = states.size / MIB
        logger.info(
            "client %d: hidden states of %d texts kept, %.1f MiB", client, len(states), size
        )


def _key(config: RunConfig, setup: Setup, prefix: Prefix) -> str:
    model = setup.model
    inputs = [
        [_VERSION, torch.__version__, transformers.__version__],
        [setup.base_fingerprint, config.model.quantization, str(model.dtype)],
        [prefix.length, str(model.device), config.train.threads],
        getattr(model.config, "_attn_implementation", ""),
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:24]


class _Files:
    """The pieces of one client.

    Args:
        run_key, client: whose they are.
        key: what they depend on.
    """

    def __init__(self, run_key: str, client: int, key: str) -> None:
        self._store = ClientStore(run_key, client, PREFIX)
        self._key = key
        self._number = 0  # of pieces that are there

    def load(self, states: HiddenStates) -> bool:
        """Read all pieces and drop those of another key; whether there were any."""
        names = self._store.names()
        own = [name for name in names if name.startswith(f"{self._key}-")]
        self._store.drop(name for name in names if name not in own)
        numbers = sorted(int(name.rpartition("-")[2]) for name in own)
        for number in numbers:
            piece = self._store.read(f"{self._key}-{number}", load_file)
            try:
                states.add_piece(piece or {})
            except (KeyError, RuntimeError, ValueError) as error:
                logger.debug("%s: piece %d is lost (%s)", self._store.folder, number, error)
        self._number = max(numbers, default=-1) + 1
        return bool(numbers)

    def save(self, states: HiddenStates) -> bool:
        """Write what is new as another piece; whether it was.

        A full disk costs that, not the round.
        """
        new = states.take_new()
        if not new:
            return False
        try:
            self._store.write(f"{self._key}-{self._number}", save(new))
        except OSError as error:
            logger.warning(
                "%s: hidden states could not be kept for the next round (%s)",
                self._store.folder,
                error,
            )
            return False
        return True
