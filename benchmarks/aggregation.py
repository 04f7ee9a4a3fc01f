"""How fast is a round's aggregation, and what memory does it need, against Flower's FedAvg?

    python -m benchmarks.aggregation [--rounds 5] [--clients 10] [--megabytes 200] [--turns 3]

The same dense arrays, float32 in tensors of 4 MB, go to ``FedAvg.aggregate_train`` of Flower and to
this project's strategy with ``scheme = "fedavg"``: decoding, every check, sums, and encoding the
new state. Each is a process of its own; they take turns, and medians over the rounds of all are
compared. Giving the replies' memory back is part of a round's time. "after the last" is from when
the last reply is there to when the next round's first message could leave. Only the call is timed:
making a reply, here reading it from a file, is not. Flower's API
takes a list of all replies; this one takes them as they arrive. Both peaks hold the replies as far
as the API makes the server hold them, the old arrays and the new ones.

``fedmoe``: clients that are known from an earlier round answer in order, and each reply is summed
as it comes. ``waiting``: they answer in reverse order, so that all but the last wait in a file.
``sparse``: the same values as experts of which each client trained a quarter. The memory bandwidth
is that of reading, of copying and of a ← a + s·b on one thread, in bytes read and written.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from benchmarks.cells import print_markdown
from benchmarks.peaks import MIB, anonymous, in_own_process, watch_memory
from fedmoe_app import ClientUpdate, FedAvg, ModelState, RoutingStats
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.client_app import app
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.moe.state import expert_name
from fedmoe_app.server.collect import WaitForAll
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.run import keep_memory_steady
from fedmoe_app.server.settings import Aggregation, ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.arrays import encode_one_by_one, view_state
from fedmoe_app.wire.packing import CODED, raw_array
from fedmoe_app.wire.records import Question, encode_update

VALUES = MIB  # of a tensor: 4 MB
KINDS = ("Flower", "fedmoe", "fedmoe, waiting", "fedmoe, sparse")
SHARE = 4  # sparse: one expert in so many was trained
QUESTION = Question(1, "ab" * 16)  # that the replies answer


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
            for name in ("first", "seconds", "cpu", "peak", "after")
        }
        for kind, cells in found.items()
    }
    base = medians["Flower"]
    rows = []
    for kind, numbers in medians.items():
        names = ("after", "seconds", "cpu", "peak")
        ratios = [f"{numbers[n] / base[n]:.3f}" for n in names]
        rows.append(
            (
                kind,
                *(f"{numbers[name]:.2f}" for name in ("first", "after", "seconds", "cpu")),
                f"{numbers['peak'] / MIB:.0f}",
                *ratios,
                f"{size / numbers['cpu'] / 1e9:.1f}",
            )
        )
    headers = ("", "first round s", "after the last s", "later s", "CPU s", "peak MiB")
    ratio = ("after the last", "time", "CPU time", "peak", "GB/s of replies")
    print_markdown((*headers, *ratio), rows)
    read, copy, triad = _bandwidth()
    print(
        f"\nmemory bandwidth of one thread: read {read:.1f} GB/s, copy {copy:.1f} GB/s, "
        f"triad {triad:.1f} GB/s"
    )
    # Each value is read twice, for the checks and for the sum, and its sum read and written.
    bound = size / 1e9 * (1 / read + 3 / triad)
    print(f"checks and sums at these bandwidths: {bound:.2f} s")


def _bandwidth() -> tuple[float, float, float]:
    source, target = torch.ones(48 * MIB), torch.zeros(48 * MIB)
    calls = (
        (1, lambda: torch.dot(source, source)),
        (2, lambda: target.copy_(source)),
        (3, lambda: target.add_(source, alpha=0.5)),
    )
    found = []
    for passes, call in calls:
        seconds = []
        for _ in range(7):
            begin = time.process_time()
            call()
            seconds.append(time.process_time() - begin)
        found.append(passes * source.nbytes / statistics.median(seconds) / 1e9)
    return found[0], found[1], found[2]


def _measure(kind: str, rounds: int, clients: int, tensors: int) -> dict[str, list[float]]:
    """Return seconds of the first and of later rounds, CPU seconds, and bytes of each peak."""
    with task_identity(), tempfile.TemporaryDirectory() as folder:
        run = (
            _Flower(clients, tensors) if kind == "Flower" else _Own(kind, clients, tensors, folder)
        )
        first = _round(run)
        later = [_round(run) for _ in range(rounds)]
    seconds, cpu, peaks, after = zip(*later, strict=True)
    return {
        "first": [first[0]],
        "seconds": list(seconds),
        "cpu": list(cpu),
        "peak": [max(first[2], *peaks)],
        "after": list(after),
    }


def _round(run: _Flower | _Own) -> tuple[float, float, int, float]:
    gc.collect()
    with watch_memory() as peak:
        run.aggregate()
    return run.seconds, run.cpu, peak.bytes - run.start, run.after


def _values(client: int, tensor: int) -> np.ndarray:
    """One tensor of a client's reply, 4 MB, the same for all kinds."""
    return _base() * np.float32(1e-3 * (1 + client + tensor / 100))


@cache
def _base() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1024, VALUES // 1024), dtype=np.float32)


class _Timed:
    """Times one call; what it pulls from :meth:`untimed` does not count."""

    def __init__(self) -> None:
        self.start = anonymous()
        self.seconds = self.cpu = self.after = 0.0

    def clock(self, sign: int) -> None:
        self.seconds += sign * time.perf_counter()
        self.cpu += sign * time.thread_time()


class _Flower(_Timed):
    """Flower's FedAvg: all replies in a list."""

    def __init__(self, clients: int, tensors: int) -> None:
        super().__init__()
        self._strategy = FlowerFedAvg()
        self._asked = Message(RecordDict(), 1, "train")
        self._clients, self._tensors = clients, tensors
        self._arrays = ArrayRecord({f"t{i}": Array(_values(99, i)) for i in range(tensors)})

    def _reply(self, client: int, tensors: int) -> Message:
        arrays = ArrayRecord({f"t{i}": Array(_values(client, i)) for i in range(tensors)})
        metrics = MetricRecord({"num-examples": 100 + client})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=self._asked)

    def aggregate(self) -> None:
        self.seconds = self.cpu = 0.0
        replies = [self._reply(client, self._tensors) for client in range(self._clients)]
        self.clock(-1)
        begin = time.perf_counter()
        arrays, _ = self._strategy.aggregate_train(1, replies)
        self.after = time.perf_counter() - begin  # it starts when the last reply is there
        replies.clear()  # their memory goes back within the time, as it does below
        self.clock(+1)
        assert arrays is not None
        self._arrays = arrays


@dataclass(frozen=True)
class _Replies:
    """What clients send: dense tensors, or ``sparse`` the same values as experts."""

    sparse: bool
    tensors: int
    folder: Path

    def changes(self, client: int, trained: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
        if self.sparse:
            for expert in trained:
                yield expert_name(0, expert, "up"), torch.from_numpy(_values(client, expert))
            return
        for tensor in range(self.tensors):
            yield f"t{tensor}", torch.from_numpy(_values(client, tensor))
        yield expert_name(0, 0, "up"), torch.zeros(1)  # a global state has some expert

    def save(self, client: int) -> RecordDict:
        """Write the large buffer of a client's reply to a file; return the rest of the reply."""
        trained = range(client % SHARE, self.tensors, SHARE) if self.sparse else range(1)
        changes = ModelState()
        for name, values in self.changes(client, trained):
            changes.insert(name, values)
        content = encode_update(self._update(client, trained, changes), question=QUESTION)
        coded = content.array_records["arrays"].pop(CODED)
        (self.folder / f"{client}").write_bytes(coded.data)
        return content

    def _update(self, client: int, trained: Iterable[int], changes: ModelState) -> ClientUpdate:
        experts = self.tensors if self.sparse else 1
        steps = torch.zeros(1, experts, dtype=torch.int64)
        steps[0, list(trained)] = 1
        zeros = torch.zeros(1, experts)
        prob, tokens = torch.full_like(zeros, 1 / experts), torch.tensor([experts])
        routing = RoutingStats(
            torch.ones_like(steps), prob, zeros, prob, zeros, trained=steps, tokens=tokens
        )
        return ClientUpdate(client, 100 + client, changes, routing, {"train-loss": 1.0})


class _Own(_Timed):
    """This project's strategy: replies one at a time."""

    def __init__(self, kind: str, clients: int, tensors: int, folder: str) -> None:
        super().__init__()
        keep_memory_steady()  # as the server does
        self._folder = Path(folder)
        self._order = range(clients)[:: -1 if "waiting" in kind else 1]
        self._strategy = MoEStrategy(
            FedAvg(),
            Limits(min_clients=1),
            ClientTask(run_key=QUESTION.run_key),
            aggregation=Aggregation(Spool(self._folder), diagnose=False),
        )
        self._asked = {client: Message(RecordDict(), 1 + client, "train") for client in self._order}
        replies = _Replies("sparse" in kind, tensors, self._folder)
        self._arrays = encode_one_by_one(replies.changes(99, range(tensors)))
        self._strategy.state = view_state(self._arrays)
        # In a process of its own: what that takes is not in this one's peak.
        with ProcessPoolExecutor(1, get_context("fork")) as other:
            self._headers = dict(
                zip(self._order, other.map(replies.save, self._order), strict=True)
            )

    def _reply(self, client: int) -> Message:
        content = RecordDict(dict(self._headers[client]))
        arrays = dict(content.array_records["arrays"])
        arrays[CODED] = raw_array((self._folder / f"{client}").read_bytes())
        content["arrays"] = ArrayRecord(arrays)
        return Message(content, reply_to=self._asked[client])

    def _replies(self) -> Iterator[Message]:
        for client in self._order:
            self.clock(+1)
            reply = [self._reply(client)]
            self.clock(-1)
            self._last = time.perf_counter()
            yield reply.pop()

    def aggregate(self) -> None:
        self.seconds = self.cpu = 0.0
        self._strategy.num_aggregated = 0  # the replies, made once, answer its first question
        now = RoundLoop(self._strategy).begin_round(1, InProcessGrid(app, {}, []))
        nodes = [1 + client for client in self._order]
        self._strategy.registry.clients = dict(zip(nodes, self._order, strict=True))
        self.clock(-1)
        collected = WaitForAll().take(self._strategy, now, nodes, self._replies())
        arrays = self._strategy.aggregate_train(now, collected)
        self.clock(+1)
        self.after = time.perf_counter() - self._last
        assert arrays is not None, now.failures
        self._arrays = arrays


if __name__ == "__main__":
    main()
