"""Clients that add the round's number to every tensor, when a file of the test lets them.

``CONTROL/client-2`` holding ``wait``, ``wait-in-5`` (a round) or ``raise`` makes client 2 do so;
``CONTROL/client-2-round-5`` says that it has begun with round 5.
"""

import time
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmoe_app import ClientUpdate, ModelState, RoutingStats
from fedmoe_app.wire.records import Question, decode_task, encode_number, encode_update

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    control = Path(str(context.node_config["control"])) / f"client-{client}"
    task = decode_task(message.content)
    control.with_name(f"{control.name}-round-{task.server_round}").touch()
    started = time.monotonic()
    while control.exists() and control.read_text() in ("wait", f"wait-in-{task.server_round}"):
        time.sleep(0.1)
    if control.exists() and control.read_text() == "raise":
        raise RuntimeError(f"client {client}: out of memory")
    changes = ModelState()
    for key, tensor in task.state.named():
        changes.insert(key, torch.full_like(tensor, float(task.server_round)))
    metrics = {"train-loss": 1.0, "seconds-train": time.monotonic() - started}
    update = ClientUpdate(client, 10, changes, routing(), metrics)
    return Message(encode_update(update, question=task.question), reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    return Message(encode_number(client, Question.of(message.content)), reply_to=message)


def routing() -> RoutingStats:
    """One layer of two experts, which share the tokens evenly; both were trained."""
    ones, half = torch.ones(1, 2, dtype=torch.int64), torch.full((1, 2), 0.5)
    means = {"prob": half, "margin": half, "peak": half, "kl": torch.zeros(1, 2)}
    return RoutingStats(count=ones, trained=ones, tokens=torch.tensor([2]), **means)
