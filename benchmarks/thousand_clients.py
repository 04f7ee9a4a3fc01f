"""A round of 10, 100 and 1,000 replies through the server, for every scheme: memory and time.

    python -m benchmarks.thousand_clients [--clients 10,100,1000] [--schemes fedavg,fcmoe]

Four clients of the embedded task train ``qwen3moe-tiny`` for one real round. Every simulated client
takes one of their updates, scales each tensor by a factor around 1 and adds noise of half its
standard deviation, by a seed of its own; its routing statistics are those of the update. Each reply
is a real Flower message and goes through decoding, every check, the spool and the fold with
diagnostics, as in a run. Every cell is a process of its own. The peak is that of anonymous memory
(Linux: RssAnon) of the whole process with torch, the model's state, and the reply at hand; seconds
are CPU time of the server, without the making of replies.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Message, RecordDict

from benchmarks.cells import print_markdown, run_config
from benchmarks.peaks import MIB, in_own_process, watch_memory
from fedmoe_app import SCHEMES, ClientUpdate, ModelShape, ModelState, parse_run_config
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.client_app import app
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.config.names import WITH_TABLE
from fedmoe_app.server.collect import WaitForAll
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.run import keep_memory_steady
from fedmoe_app.server.settings import Aggregation, ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.arrays import view_state
from fedmoe_app.wire.records import encode_state, encode_update

REAL_CLIENTS = 4
HIDDEN = 64  # of qwen3moe-tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--schemes", default=",".join(WITH_TABLE))
    parser.add_argument("--cell", nargs=3, metavar=("SCHEME", "CLIENTS", "FILE"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cell:
        scheme, clients, file = arguments.cell
        print(json.dumps(_measure(scheme, int(clients), Path(file))))
        return
    counts = [int(count) for count in arguments.clients.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "round.pt"
        torch.save(_real_round(), file)
        rows = [_row(scheme, counts, file) for scheme in arguments.schemes.split(",")]
    headers = ["scheme", *(f"{n} clients: MiB, s" for n in counts), "peak ratio", "s a client"]
    print_markdown(headers, rows)


def _row(scheme: str, counts: list[int], file: Path) -> tuple[str, ...]:
    cells = [
        in_own_process("benchmarks.thousand_clients", ["--cell", scheme, str(count), str(file)])
        for count in counts
    ]
    each = [f"{cell['cpu'] / count:.4f}" for cell, count in zip(cells, counts, strict=True)]
    return (
        scheme,
        *(f"{cell['peak'] / MIB:.0f}, {cell['cpu']:.2f}" for cell in cells),
        f"{cells[-1]['peak'] / cells[0]['peak']:.2f}",
        " ".join(each),
    )


def _real_round() -> tuple[ModelState, list[ClientUpdate]]:
    """Train some clients for one round and return the global state with their updates."""
    from fedmoe_app.client.round import train_client
    from fedmoe_app.config.node import Node
    from fedmoe_app.moe.layers import read_state
    from fedmoe_app.tasks.setup import load_setup, server_data
    from fedmoe_app.wire.records import TrainTask

    config = parse_run_config(run_config({"data.max-train-examples": 800}))
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    state = read_state(setup.model, setup.layers)
    task = TrainTask(1, state, data.label_names, data.fingerprint)
    nodes = [Node(client, client, REAL_CLIENTS, None) for client in range(REAL_CLIENTS)]
    return state, [train_client(config, node, task) for node in nodes]


def _like(real: list[ClientUpdate], client: int) -> ClientUpdate:
    """Make a client's update after one of the real ones; the same for every run."""
    generator = torch.Generator().manual_seed(1000 + client)
    base = real[int(torch.randint(len(real), (1,), generator=generator))]
    changes = ModelState()
    for key, tensor in base.changes.named():
        factor = float(torch.empty(1).log_normal_(0, 0.2, generator=generator))
        noise = torch.randn(tensor.shape, generator=generator) * tensor.std(correction=0) / 2
        changes.insert(key, tensor * factor + noise)
    examples = int(torch.randint(50, 500, (1,), generator=generator))
    region = torch.randn(*base.routing.count.shape, HIDDEN, generator=generator)
    routing = replace(base.routing, region=region)
    return replace(
        base, client=client, num_examples=examples, num_partitions=0, changes=changes,
        routing=routing, metrics=base.metrics | {"num-truncated": 0.0},
    )  # fmt: skip


class _Round:
    """One round of simulated replies; the clock stops while a reply is made."""

    def __init__(self, strategy: MoEStrategy, real: list[ClientUpdate], clients: int) -> None:
        self._strategy, self._real, self._clients = strategy, real, clients
        # Ids beside those that Flower gives to the SuperLink.
        self._asked = [Message(RecordDict(), 10 + client, "train") for client in range(clients)]
        self.cpu = 0.0

    def run(self) -> None:
        now = RoundLoop(self._strategy).begin_round(1, InProcessGrid(app, {}, []))
        self.cpu -= time.thread_time()
        collected = WaitForAll().take(self._strategy, now, (), self._replies())
        arrays = self._strategy.aggregate_train(now, collected)
        self.cpu += time.thread_time()
        assert arrays is not None and len(collected.updates) == self._clients, now.failures

    def _replies(self) -> Iterator[Message]:
        # The last to be asked answers first: the order of arrival is not that of the fold.
        for client in reversed(range(self._clients)):
            self.cpu += time.thread_time()
            reply = [Message(self._content(client), reply_to=self._asked[client])]
            self.cpu -= time.thread_time()
            yield reply.pop()

    def _content(self, client: int) -> RecordDict:
        update = _like(self._real, client)
        if not self._strategy.region_size:
            update = replace(update, routing=replace(update.routing, region=None))
        return encode_update(update, question=self._strategy.question(1))


def _measure(scheme: str, clients: int, file: Path) -> dict[str, float]:
    state, real = torch.load(file, weights_only=False)
    keep_memory_steady()  # as the server does
    layers, experts = real[0].routing.count.shape
    folder = Path(os.path.dirname(file))
    strategy = MoEStrategy(
        SCHEMES[scheme](),
        Limits(min_clients=1),
        ClientTask(ModelShape(layers, experts, 2, HIDDEN)),
        aggregation=Aggregation(Spool(folder)),
    )
    strategy.state = view_state(encode_state(state))
    with task_identity():
        one = _Round(strategy, real, clients)
        with watch_memory() as peak:
            one.run()
    return {"peak": peak.bytes, "cpu": one.cpu}


if __name__ == "__main__":
    main()
