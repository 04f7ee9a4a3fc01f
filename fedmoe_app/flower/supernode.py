"""Flower's SuperNode in this process: its program, its heartbeats, where it takes code in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedmoe_app.flower.release import UnsupportedFlowerError

if TYPE_CHECKING:
    from flwr.app import Message

HEARTBEATS = "flwr.supercore.heartbeat"  # the module that the thread runs in
PORT = 9094  # default of the SuperNode's Runtime API

# Fetches a message with its run's bundle and config, and stores them; same in all tried releases.
_TAKES_IN = "_pull_and_store_message"
_NEEDED = {"state", "object_store", "receive", "get_run", "get_fab"}

TakesIn = Callable[..., int | None]


def run_supernode() -> None:
    """Run ``flower-supernode`` with the arguments in ``sys.argv``, to its end."""
    from flwr.supernode.cli import flower_supernode

    flower_supernode()


def is_heartbeat(traceback: TracebackType | None) -> bool:
    """Tell whether an error came out of the thread that sends the node's heartbeats."""
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == HEARTBEATS:
            return True
        traceback = traceback.tb_next
    return False


def change_taking_in(change: Callable[[TakesIn], TakesIn]) -> None:
    """Put another function in place of the one that takes messages in, made of that one.

    Its arguments come by name, ``receive``, ``get_run`` and ``get_fab`` among them: the functions
    that ask the SuperLink for the message, the run and its bundle.

    Raises:
        UnsupportedFlowerError: this release has no such function.
    """
    from flwr.supernode import start_client_internal as supernode

    function = getattr(supernode, _TAKES_IN, None)
    if function is None or not set(inspect.signature(function).parameters) >= _NEEDED:
        raise UnsupportedFlowerError(
            "this version of Flower has no place for the node's gate; install flwr 1.39"
        )
    setattr(supernode, _TAKES_IN, change(function))


def answer(reply: Message, state: Any, object_store: Any) -> None:
    """Have the SuperNode send a reply that no ClientApp gave.

    Args:
        reply: made with ``reply_to``.
        state: as the function that takes messages in got it.
        object_store: likewise.
    """
    from flwr.supernode import start_client_internal as supernode

    supernode._insert_message(reply, state, object_store)


def config_of(bundle: bytes, run: Any) -> dict[str, Any]:
    """Return a run's whole config: that of the app's bundle under what the run was given."""
    from flwr.common.config import get_fused_config_from_fab

    return dict(get_fused_config_from_fab(bundle, run))


def bundle_of(folder: Path) -> bytes:
    """Return the bundle that ``flwr run`` would send of an app's folder."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(folder)
