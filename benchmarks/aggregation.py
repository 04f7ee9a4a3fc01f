"""How fast is a round's aggregation, and what memory does it need, against Flower's FedAvg?

    python -m benchmarks.aggregation [--rounds 5] [--clients 10] [--megabytes 200] [--turns 3]

The same dense arrays, float32 in tensors of 4 MB, go to ``FedAvg.aggregate_train`` of Flower and to
this project's strategy with ``scheme = "fedavg"``: decoding, every check, spool, sums, and encoding
the new state. Each is a process of its own; they take turns, and medians over the rounds of all are
compared. Only the call is timed: making a reply is not. Flower's API takes a list of all replies;
this one takes them as they arrive, so that each is made when it is pulled. Both peaks hold the
replies as far as the API makes the server hold them, the old arrays and the new ones.

"sparse": the same values as experts of which each client trained a quarter. ``in memory`` keeps all
replies, as a run does below ``spool-above``. The memory bandwidth is that of copying and of
a ← b + s·c on one thread, in bytes read and written.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from benchmarks.cells import print_markdown
from benchmarks.peaks import MIB, anonymous, in_own_process, watch_memory
from fedmoe_app.inprocess import task_identity
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState, expert_name
from fedmoe_app.report.lines import RoundReport
from fedmoe_app.rounds import Limits
from fedmoe_app.schemes.fedavg import FedAvg
from fedmoe_app.spool import DEFAULT_LIMIT, Spool
from fedmoe_app.strategy import MoEStrategy
from fedmoe_app.wire.records import encode_update
from fedmoe_app.wire.update import ClientUpdate
from fedmoe_app.wire.views import encode_one_by_one, view_state

VALUES = MIB  # of a tensor: 4 MB
KINDS = ("Flower", "fedmoe", "fedmoe, in memory", "fedmoe, sparse")
SHARE = 4  # sparse: one expert in so many was trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cell", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tensors = arguments.megabytes * 10**6 // (4 * VALUES)
    if arguments.cell:
        print(json.dumps(_measure(arguments.cell, arguments.rounds, arguments.clients, tensors)))
        return
    shape = [f"--clients={arguments.clients}", f"--megabytes={arguments.megabytes}"]
    found: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.turns):
        for kind in KINDS:
            options = [f"--cell={kind}", f"--rounds={arguments.rounds}", *shape]
            found[kind].append(in_own_process("benchmarks.aggregation", options))
    _print(found, arguments.clients * tensors * 4 * VALUES)


def _print(found: dict[str, list[dict[str, list[float]]]], size: int) -> None:
    medians = {
        kind: {
            name: statistics.median(x for cell in cells for x in cell[name])
            for name in ("first", "seconds", "cpu", "peak")
        }
        for kind, cells in found.items()
    }
    base = medians["Flower"]
    rows = []
    for kind, numbers in medians.items():
        ratios = [f"{numbers[n] / base[n]:.2f}" for n in ("seconds", "cpu", "peak")]
        rows.append(
            (
                kind,
                *(f"{numbers[name]:.2f}" for name in ("first", "seconds", "cpu")),
                f"{numbers['peak'] / MIB:.0f}",
                *ratios,
                f"{size / numbers['cpu'] / 1e9:.1f}",
            )
        )
    headers = ("", "first round s", "later s", "CPU s", "peak MiB")
    print_markdown((*headers, "time", "CPU time", "peak", "GB/s of replies"), rows)
    copy, triad = _bandwidth()
    print(f"\nmemory bandwidth of one thread: copy {copy:.1f} GB/s, triad {triad:.1f} GB/s")


def _bandwidth() -> tuple[float, float]:
    source, target = torch.ones(48 * MIB), torch.zeros(48 * MIB)
    copies, triads = [], []
    for _ in range(5):
        begin = time.process_time()
        target.copy_(source)
        copies.append(2 * source.nbytes / (time.process_time() - begin) / 1e9)
        begin = time.process_time()
        target.add_(source, alpha=0.5)
        triads.append(3 * source.nbytes / (time.process_time() - begin) / 1e9)
    return statistics.median(copies), statistics.median(triads)


def _measure(kind: str, rounds: int, clients: int, tensors: int) -> dict[str, list[float]]:
    """Return seconds of the first and of later rounds, CPU seconds, and bytes of each peak."""
    with task_identity(), tempfile.TemporaryDirectory() as folder:
        run = (
            _Flower(clients, tensors) if kind == "Flower" else _Own(kind, clients, tensors, folder)
        )
        first = _round(run)
        later = [_round(run) for _ in range(rounds)]
    seconds, cpu, peaks = zip(*later, strict=True)
    return {
        "first": [first[0]],
        "seconds": list(seconds),
        "cpu": list(cpu),
        "peak": [max(first[2], *peaks)],
    }


def _round(run: _Flower | _Own) -> tuple[float, float, int]:
    gc.collect()
    with watch_memory() as peak:
        run.aggregate()
    return run.seconds, run.cpu, peak.bytes - run.start


def _values(client: int, tensor: int) -> np.ndarray:
    """One tensor of a client's reply, 4 MB, the same for all kinds."""
    return _base() * np.float32(1e-3 * (1 + client + tensor / 100))


@cache
def _base() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(VALUES, dtype=np.float32)


class _Timed:
    """Times one call; what it pulls from :meth:`untimed` does not count."""

    def __init__(self) -> None:
        self.start = anonymous()
        self.seconds = self.cpu = 0.0

    def clock(self, sign: int) -> None:
        self.seconds += sign * time.perf_counter()
        self.cpu += sign * time.thread_time()


class _Flower(_Timed):
    """Flower's FedAvg: all replies in a list."""

    def __init__(self, clients: int, tensors: int) -> None:
        super().__init__()
        self._strategy = FlowerFedAvg()
        self._asked = Message(RecordDict(), 1, "train")
        self._arrays = ArrayRecord({f"t{i}": Array(_values(99, i)) for i in range(tensors)})
        self._replies = [self._reply(client, tensors) for client in range(clients)]

    def _reply(self, client: int, tensors: int) -> Message:
        arrays = ArrayRecord({f"t{i}": Array(_values(client, i)) for i in range(tensors)})
        metrics = MetricRecord({"num-examples": 100 + client})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=self._asked)

    def aggregate(self) -> None:
        self.seconds = self.cpu = 0.0
        self.clock(-1)
        arrays, _ = self._strategy.aggregate_train(1, self._replies)
        self.clock(+1)
        assert arrays is not None
        self._arrays = arrays


class _Own(_Timed):
    """This project's strategy: replies one at a time."""

    def __init__(self, kind: str, clients: int, tensors: int, folder: str) -> None:
        super().__init__()
        self._sparse, self._clients, self._tensors = "sparse" in kind, clients, tensors
        limit = 2**60 if "memory" in kind else DEFAULT_LIMIT
        self._strategy = MoEStrategy(
            FedAvg(), Limits(min_clients=1), spool=Spool(Path(folder), limit), diagnose=False
        )
        self._asked = Message(RecordDict(), 1, "train")
        everything = range(tensors)
        self._arrays = encode_one_by_one(self._changes(99, everything))
        self._strategy.state = view_state(self._arrays)

    def _changes(self, client: int, trained: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
        if self._sparse:
            for expert in trained:
                yield expert_name(0, expert, "up"), torch.from_numpy(_values(client, expert))
            return
        for tensor in range(self._tensors):
            yield f"t{tensor}", torch.from_numpy(_values(client, tensor))
        yield expert_name(0, 0, "up"), torch.zeros(1)  # a global state has some expert

    def _reply(self, client: int) -> Message:
        trained = range(client % SHARE, self._tensors, SHARE) if self._sparse else range(1)
        content = encode_update(self._update(client, trained))
        content["arrays"] = encode_one_by_one(self._changes(client, trained))
        return Message(content, reply_to=self._asked)

    def _update(self, client: int, trained: Iterable[int]) -> ClientUpdate:
        """All of an update but its changes, which are encoded one by one."""
        experts = self._tensors if self._sparse else 1
        steps = torch.zeros(1, experts, dtype=torch.int64)
        steps[0, list(trained)] = 1
        zeros = torch.zeros(1, experts)
        prob, tokens = torch.full_like(zeros, 1 / experts), torch.tensor([experts])
        routing = RoutingStats(
            torch.ones_like(steps), prob, zeros, prob, zeros, trained=steps, tokens=tokens
        )
        return ClientUpdate(client, 100 + client, ModelState(), routing, {"train-loss": 1.0})

    def _replies(self) -> Iterator[Message]:
        for client in range(self._clients):
            self.clock(+1)
            reply = [self._reply(client)]
            self.clock(-1)
            yield reply.pop()

    def aggregate(self) -> None:
        self.seconds = self.cpu = 0.0
        self._strategy.report = RoundReport(1)
        self.clock(-1)
        arrays, _ = self._strategy.aggregate_train(1, self._replies())
        self.clock(+1)
        assert arrays is not None, self._strategy.report.failures
        self._arrays = arrays


if __name__ == "__main__":
    main()
