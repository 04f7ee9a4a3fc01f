"""A SuperExec that has the heavy imports done and forks a process of itself for each message.

Flower starts ``flwr-clientapp`` anew for each message, and importing torch and transformers
takes longer than a small round of training. Here the imports happen once; a fork has them all.
Each message still gets a process of its own, with nothing left of the one before.

Only third-party modules are imported beforehand: the app's own come with each run's bundle. The
process runs one Python thread and leaves CUDA alone, so that forking it is safe.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedmoe_app.flower import superexec
from fedmoe_app.launch.environment import set_default_environment

POLL_SECONDS = 0.1  # between two looks for a message
_PARENT_SECONDS = 0.5  # between two looks for the parent
_MODULES = (
    superexec.MODULE,
    "torch",
    "torch.optim",
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.integrations.moe",
    "datasets",
)
# Their import looks for a GPU, after which a fork could not use it.
_WITHOUT_CUDA = ("peft", "bitsandbytes")


def preload() -> None:
    """Import what a client needs beside the app itself."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would start threads at import
    for name in _MODULES:
        importlib.import_module(name)
    import torch

    if torch.version.cuda is None:
        for name in _WITHOUT_CUDA:
            importlib.import_module(name)


class ForkExecutor:
    """Starts ``flwr-clientapp`` by fork, and keeps count of what it started."""

    def __init__(self) -> None:
        """Have no processes yet."""
        self.running: set[int] = set()  # process ids

    def launch(self, arguments: Sequence[str]) -> None:
        """Run ``flwr-clientapp`` with these arguments in a fork of this process."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become_clientapp(arguments)
        self.running.add(child)

    def reconcile(self) -> None:
        """Take note of the processes that have ended."""
        for child in list(self.running):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.running.discard(child)

    def close(self) -> None:
        """End the processes that still run."""
        self.reconcile()
        for child in self.running:
            os.kill(child, signal.SIGTERM)


def _become_clientapp(arguments: Sequence[str]) -> NoReturn:
    """Run Flower's program in this process and end it; nothing of the parent's stack unwinds."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_clientapp = superexec.run_clientapp
        forget_app()
        sys.argv = [superexec.COMMAND, *arguments]
        run_clientapp()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forget_app() -> None:
    """Unload this package: the run's bundle brings its own copy, perhaps of another version."""
    package = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def serve(address: str, root_certificates: Path | None) -> NoReturn:
    """Take messages from a SuperNode that was started with ``--isolation process``, for ever.

    Args:
        address: ``HOST:PORT`` of the SuperNode's Runtime API.
        root_certificates: CA certificate of that API; None: it has no TLS (on loopback).
    """
    fixed = superexec.task_arguments(address, root_certificates, os.getpid())
    executor = ForkExecutor()
    with superexec.Tasks(address, root_certificates) as tasks:
        try:
            while True:
                executor.reconcile()
                if token := tasks.next_token():
                    executor.launch([*fixed, *superexec.token_arguments(token)])
                time.sleep(POLL_SECONDS)
        finally:
            executor.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program: ``python -m fedmoe_app.launch.warm --runtime-api-address HOST:PORT``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--runtime-api-address", required=True, metavar="HOST:PORT")
    parser.add_argument("--root-certificates", type=Path, help="CA of the Runtime API")
    parser.add_argument("--parent-pid", type=int, help="end when this process has ended")
    given = parser.parse_args(arguments)
    start(given.runtime_api_address, given.root_certificates, parent=given.parent_pid)


def start(
    address: str,
    root_certificates: Path | None = None,
    health_address: str | None = None,
    parent: int | None = None,
) -> NoReturn:
    """Make the imports, then serve until a signal or the parent's end.

    Args:
        address: ``HOST:PORT`` of the SuperNode's Runtime API.
        root_certificates: as for :func:`serve`.
        health_address: ``HOST:PORT`` that says from then on, by the gRPC health protocol, that
            messages are taken; None: nobody asks.
        parent: process id of the process to end with; None: no such one.
    """
    set_default_environment()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if parent is not None:
        _end_with(parent)
    preload()
    if health_address is not None:
        _answer_health(health_address)
    serve(address, root_certificates)


def _answer_health(address: str) -> None:
    """Fork a process that answers there as long as this one lives: its threads must not be here."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if os.fork():
        return
    try:
        _end_with(parent)
        server = superexec.answer_health(address)  # ends when nobody holds it
        while server:
            signal.pause()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even while it waits for an answer.

    A timer, because a thread could hold a lock at the moment of a fork; forks do not inherit it.
    """

    def look(*_: object) -> None:
        if os.getppid() != parent:
            sys.exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _PARENT_SECONDS, _PARENT_SECONDS)


if __name__ == "__main__":
    main()
