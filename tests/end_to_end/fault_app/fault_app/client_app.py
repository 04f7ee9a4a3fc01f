"""Clients that add the round's number to every tensor, when a file of the test lets them.

``CONTROL/client-2`` holding ``wait``, ``wait-in-5`` (a round) or ``raise`` makes client 2 do so;
``CONTROL/client-2-round-5`` says that it has begun with round 5.
"""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    control = Path(str(context.node_config["control"])) / f"client-{client}"
    task = message.content["task"]
    server_round = int(task["server-round"])
    control.with_name(f"{control.name}-round-{server_round}").touch()
    started = time.monotonic()
    while control.exists() and control.read_text() in ("wait", f"wait-in-{server_round}"):
        time.sleep(0.1)
    if control.exists() and control.read_text() == "raise":
        raise RuntimeError(f"client {client}: out of memory")
    changes = {
        key: Array(np.full(array.numpy().shape, float(server_round), np.float32))
        for key, array in message.content["arrays"].items()
    }
    metrics = {
        "protocol": task["protocol"],
        "client": client,
        "num-examples": 10,
        "num-partitions": 0,
        "train-loss": 1.0,
        "seconds-train": time.monotonic() - started,
    }
    reply = {
        "arrays": ArrayRecord(changes),
        "routing": ArrayRecord({name: Array(values) for name, values in routing().items()}),
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(reply), reply_to=message)


def routing() -> dict[str, np.ndarray]:
    """One layer of two experts, which share the tokens evenly; both were trained."""
    ones, half = np.ones((1, 2), np.int64), np.full((1, 2), 0.5, np.float32)
    zero = np.zeros((1, 2), np.float32)
    counts = {"count": ones, "trained": ones, "tokens": np.array([2])}
    return counts | {"prob": half, "margin": half, "peak": half, "kl": zero}
