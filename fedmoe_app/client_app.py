"""ClientApp: one message in, one reply out.

Whatever goes wrong is raised: Flower turns it into an error reply with the reason, and the server
goes on with the clients that are left.
"""

from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on this node's data and reply with the sparse update."""
    # Imported late: a deployment starts a process for each message, and most of its start-up
    # would otherwise be spent on imports before the message is even read.
    from fedmoe_app.config import parse_run_config
    from fedmoe_app.local.node import Node
    from fedmoe_app.local.round import train_client
    from fedmoe_app.wire.records import decode_task, encode_update

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    update = train_client(config, node, decode_task(message.content))
    return Message(encode_update(update), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received model on this node's own test examples."""
    from fedmoe_app.config import parse_run_config
    from fedmoe_app.local.node import Node
    from fedmoe_app.local.round import evaluate_client
    from fedmoe_app.wire.records import decode_task

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    score = evaluate_client(config, node, decode_task(message.content))
    metrics = MetricRecord(
        {
            "client": node.client,
            "loss": score.loss,
            "correct": score.correct,
            "items": score.items,
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Tell the client's number, so that the server can draw clients in a fixed order."""
    from fedmoe_app.local.node import Node

    node = Node.from_config(context.node_config, context.node_id)
    return Message(RecordDict({"metrics": MetricRecord({"client": node.client})}), reply_to=message)
