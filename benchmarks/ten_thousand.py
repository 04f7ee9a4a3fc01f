"""Whole rounds of 100, 1,000 and 10,000 clients through the server's loop: memory and CPU time.

    python -m benchmarks.ten_thousand [--clients 100,1000,10000] [--schemes fedavg,fedmoe,fcmoe]

The nodes lie in this process and train nothing: each answers with a made-up update of a small model
(2 layers of 4 experts, 712 values) by a seed of its own, and with the guard's and the registry's
questions as real ones do. So what is measured is what a client costs the server beside its values:
messages, checks, registry, statistics, sums. Two rounds of all clients; each cell is a process of
its own. The peak is that of anonymous memory (Linux: RssAnon) above what the process held before,
messages and replies of the nodes included; seconds are CPU time of the second round, in which every
client is known, without the making of replies.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from benchmarks.cells import print_markdown
from benchmarks.peaks import MIB, anonymous, in_own_process, watch_memory
from fedmoe_app import SCHEMES, ClientUpdate, ModelShape, ModelState, RoutingStats
from fedmoe_app.aggregation.guard import STRENGTHS, Guard
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.moe.state import expert_name
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.run import keep_memory_steady
from fedmoe_app.server.settings import Aggregation, ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.arrays import view_state
from fedmoe_app.wire.numbers import encode_number
from fedmoe_app.wire.records import Question, encode_state, encode_update

LAYERS, EXPERTS, TOP_K, HIDDEN, INNER = 2, 4, 2, 8, 10
ROUNDS = 2
app = ClientApp()
made = 0.0  # CPU seconds that the nodes took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="100,1000,10000")
    parser.add_argument("--schemes", default="fedavg,fedmoe,fcmoe")
    parser.add_argument("--cell", nargs=2, metavar=("SCHEME", "CLIENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cell:
        scheme, clients = arguments.cell
        print(json.dumps(_measure(scheme, int(clients))))
        return
    counts = [int(count) for count in arguments.clients.split(",")]
    rows = [_row(scheme, counts) for scheme in arguments.schemes.split(",")]
    print_markdown(["scheme", *(f"{n} clients: MiB, ms a client" for n in counts)], rows)


def _row(scheme: str, counts: list[int]) -> tuple[str, ...]:
    cells = [in_own_process("benchmarks.ten_thousand", ["--cell", scheme, str(n)]) for n in counts]
    each = [
        f"{cell['peak'] / MIB:.0f}, {cell['cpu'] / count * 1e3:.2f}"
        for cell, count in zip(cells, counts, strict=True)
    ]
    return (scheme, *each)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with a made-up update."""
    global made
    made -= time.thread_time()
    client = int(context.node_config["partition-id"])
    content = encode_update(_update(client), question=Question.of(message.content))
    made += time.thread_time()
    return Message(content, reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Tell the client's number."""
    client = int(context.node_config["partition-id"])
    return Message(encode_number(client, Question.of(message.content)), reply_to=message)


def _values(seed: int, size: float) -> ModelState:
    generator = torch.Generator().manual_seed(seed)
    state = ModelState()
    shapes: dict[str, tuple[int, ...]] = {"head": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes[f"layers.{layer}.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            shapes[expert_name(layer, expert, "up")] = (INNER, HIDDEN)
    for name, shape in shapes.items():
        state.insert(name, size * torch.randn(shape, generator=generator))
    return state


def _update(client: int) -> ClientUpdate:
    """Make a client's update; the same in every round."""
    count = torch.full((LAYERS, EXPERTS), 50)
    prob = torch.full((LAYERS, EXPERTS), 1 / EXPERTS)
    routing = RoutingStats(
        count, prob, prob / 2, prob, prob, trained=torch.ones_like(count),
        tokens=torch.full((LAYERS,), 50 * EXPERTS // TOP_K),
    )  # fmt: skip
    examples = 50 + client % 100
    return ClientUpdate(client, examples, _values(client, 0.01), routing, {"train-loss": 1.0})


def _measure(scheme: str, clients: int) -> dict[str, float]:
    keep_memory_steady()  # as the server does
    with task_identity(), tempfile.TemporaryDirectory() as folder:
        spool = Spool(folder=Path(folder))
        strategy = MoEStrategy(
            SCHEMES[scheme](),
            Limits(min_clients=clients),
            ClientTask(ModelShape(LAYERS, EXPERTS, TOP_K, HIDDEN)),
            aggregation=Aggregation(spool, guard=Guard(STRENGTHS["default"])),
        )
        loop, start = RoundLoop(strategy), anonymous()
        grid = InProcessGrid(app, {}, ({"partition-id": client} for client in range(clients)))
        state = encode_state(_values(10**6, 1.0))
        loop.arrays, strategy.state = state, view_state(state)
        with watch_memory() as peak:
            for server_round in range(1, ROUNDS + 1):
                begin = time.thread_time() - made
                loop.run_round(loop.begin_round(server_round, grid), is_due=False)
                used = time.thread_time() - made - begin
        assert strategy.num_aggregated == ROUNDS and len(strategy.registry.clients) == clients
    return {"peak": peak.bytes - start, "cpu": used}


if __name__ == "__main__":
    main()
