"""ClientApp: one message in, one reply out.

Whatever goes wrong is raised with the client's number: Flower turns it into an error reply with the
reason, and the server goes on with the clients that are left.

Heavy modules are imported late: a deployment starts a process for each message, and a fault in the
node's config should not take seconds to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@contextmanager
def name_errors(client: int, promised: str = "") -> Iterator[None]:
    """Put the client's number before the message of any error; the server may not know it yet.

    An error of too little memory gets a message that helps, and holds no tensor any more.

    Args:
        client: its number.
        promised: what keeps the node's numbers from the server; then an error that may come of its
            rows stays in the node's log. Which row has a class that a run does not name would tell
            all classes, a row a run.
    """
    try:
        yield
    except Exception as error:
        from fedmoe_app.client.memory import explain, release

        if shortage := explain(error):
            release(error)
            raise RuntimeError(f"client {client}: {shortage}") from None
        if promised and not _is_of_the_run(error):
            raise RuntimeError(
                f"client {client}: {type(error).__name__}; with {promised} the reason stays in "
                "this node's log"
            ) from error
        message = " ".join(str(error).split())
        if not isinstance(error, ValueError):  # this app's own errors are, and explain themselves
            message = f"{type(error).__name__}: {message}"
        raise RuntimeError(f"client {client}: {message}") from error


def _is_of_the_run(error: Exception) -> bool:
    """Whether an error tells of the run's config, messages or turn, and of no row of the node."""
    from fedmoe_app.client.received import CannotBuildError
    from fedmoe_app.client.serving import BusyError
    from fedmoe_app.config.errors import ConfigError
    from fedmoe_app.config.policy import RefusedError
    from fedmoe_app.privacy.member import SumError
    from fedmoe_app.wire.tasks import ProtocolError

    kinds = BusyError | CannotBuildError | ConfigError | ProtocolError | RefusedError | SumError
    return isinstance(error, kinds)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on this node's data and reply with the sparse update."""
    from fedmoe_app.client.serving import serving
    from fedmoe_app.client.timing import Stopwatch
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config

    watch = Stopwatch.for_message(message)
    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        with watch.phase("start"):
            from fedmoe_app.client.encode import encode_reply
            from fedmoe_app.client.received import complete
            from fedmoe_app.client.round import train_client
            from fedmoe_app.wire.records import decode_task, seal
        with watch.phase("apply"):
            content, version = complete(message.content, node.client)
            task = decode_task(content)
        update = train_client(config, node, task, watch)
        if config.privacy.secure_sum:
            from fedmoe_app.client.summed import masked_reply

            reply = masked_reply(update, message.content, context, task, config.privacy, version)
            return Message(reply, reply_to=message)
        with watch.phase("encode"):
            if config.privacy.has_dp:
                from fedmoe_app.privacy.clipping import bounded

                update = bounded(update, config.privacy.dp_clip)
            reply = encode_reply(update, task, config.seed, node.codec, version)
        if not config.privacy.withholds:  # how long things took tells of the data, too
            reply.metric_records["metrics"].update(watch.metrics())
            seal(reply)
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received model on this node's own test examples."""
    from fedmoe_app.client.received import complete
    from fedmoe_app.client.round import evaluate_client
    from fedmoe_app.client.serving import serving
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config
    from fedmoe_app.wire.records import decode_task, encode_score

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        content, version = complete(message.content, node.client)
        task = decode_task(content)
        score = evaluate_client(config, node, task)
    return Message(encode_score(score, version, task.question), reply_to=message)


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Import what training needs; simulated clients are asked while the server does the same."""
    from importlib import import_module

    from fedmoe_app.config.parse import parse_run_config

    needed = ["client.encode", "client.received", "client.round", "wire.records"]
    if parse_run_config(context.run_config).model.train != "all":
        needed.append("moe.training.lora")
    for name in needed:
        import_module(f"fedmoe_app.{name}")
    return Message(RecordDict(), reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Tell the client's number, so that the server can draw clients in a fixed order."""
    from fedmoe_app.config.node import Node
    from fedmoe_app.wire.numbers import encode_number
    from fedmoe_app.wire.question import Question

    node = Node.from_config(context.node_config, context.node_id)
    content = encode_number(node.client, Question.of(message.content))
    return Message(content, reply_to=message)


@app.query("choose")
def choose(message: Message, context: Context) -> Message:
    """Choose the experts that this node will hold in its first round."""
    from fedmoe_app.client.round import choose_for_client
    from fedmoe_app.client.serving import serving
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config
    from fedmoe_app.wire.records import decode_task, encode_number
    from fedmoe_app.wire.update import RECORD, encode_placement

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        task = decode_task(message.content)
        placement = choose_for_client(config, node, task)
    content = encode_number(node.client, task.question)
    content[RECORD] = encode_placement(placement)
    return Message(content, reply_to=message)


@app.query("measure")
def measure(message: Message, context: Context) -> Message:
    """Send the sums of the received model's outputs that the scheme asks for; train nothing."""
    from fedmoe_app.client.round import measure_for_client
    from fedmoe_app.client.serving import serving
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config
    from fedmoe_app.wire.records import decode_task, encode_number
    from fedmoe_app.wire.statistics import RECORD, encode_statistics

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        task = decode_task(message.content)
        sums = measure_for_client(config, node, task)
        if config.privacy.secure_sum:
            from fedmoe_app.client.summed import masked_numbers_reply

            reply = masked_numbers_reply(sums, message.content, context, task, node.client)
            return Message(reply, reply_to=message)
    content = encode_number(node.client, task.question)
    content[RECORD] = encode_statistics(sums)
    return Message(content, reply_to=message)


@app.query("sum_keys")
def sum_keys(message: Message, context: Context) -> Message:
    """Begin a masked sum: send public keys."""
    from fedmoe_app.client.summed import send_keys

    return _step_of_sum(message, context, send_keys)


@app.query("sum_shares")
def sum_shares(message: Message, context: Context) -> Message:
    """Send shares of this client's secrets, encrypted for the others."""
    from fedmoe_app.client.summed import send_shares

    return _step_of_sum(message, context, send_shares)


@app.query("sum_unmask")
def sum_unmask(message: Message, context: Context) -> Message:
    """Send the shares that take the masks off a sum."""
    from fedmoe_app.client.summed import send_unmasking

    return _step_of_sum(message, context, send_unmasking)


@app.query("sum_values")
def sum_values(message: Message, context: Context) -> Message:
    """Send the masked changes that are asked for."""
    from fedmoe_app.client.serving import serving
    from fedmoe_app.client.summed import values_reply
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        reply = values_reply(message.content, context, node.client, config)
    return Message(reply, reply_to=message)


def _step_of_sum(
    message: Message, context: Context, step: Callable[[RecordDict, Context], dict[str, Any]]
) -> Message:
    """Answer one of the protocol's messages that carry no values."""
    from fedmoe_app.client.serving import serving
    from fedmoe_app.config.node import Node
    from fedmoe_app.config.parse import parse_run_config
    from fedmoe_app.wire.masked import encode_answer
    from fedmoe_app.wire.question import Question

    config = parse_run_config(context.run_config)
    node = Node.from_config(context.node_config, context.node_id)
    shares = config.wait_for_other_runs == 0
    with (
        name_errors(node.client, config.privacy.promised),
        serving(message.content, context.node_id, shares),
    ):
        if not config.privacy.secure_sum:
            raise ValueError("this run has no masked sums: privacy.secure-sum = false")
        entries = step(message.content, context)
    content = encode_answer(node.client, Question.of(message.content), entries)
    return Message(content, reply_to=message)


@app.query("free")
def free(message: Message, context: Context) -> Message:
    """Tell whether this node may work for the run: an error if it works for another one.

    From then on it does; a run that has to wait for other nodes lets it go again.
    """
    from fedmoe_app.client.serving import end_of_run, serving
    from fedmoe_app.config.node import Node

    node = Node.from_config(context.node_config, context.node_id)
    if message.content.config_records["task"].get("release", False):
        end_of_run(message.content, context.node_id)
    else:
        with name_errors(node.client), serving(message.content, context.node_id, shares=False):
            pass
    return Message(RecordDict({"metrics": MetricRecord({"client": node.client})}), reply_to=message)


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Take note that a run has ended; drop what this client kept between its rounds if told so."""
    from fedmoe_app.client.serving import end_of_run
    from fedmoe_app.client.store import PREFIX, drop_client
    from fedmoe_app.config.node import Node

    node = Node.from_config(context.node_config, context.node_id)
    task = message.content.config_records["task"]
    with name_errors(node.client):
        end_of_run(message.content, context.node_id)
        # What costs only time to make again goes in any case.
        drop_client(str(task["run-key"]), node.client, "" if task.get("drop", True) else PREFIX)
    return Message(RecordDict({"metrics": MetricRecord({"client": node.client})}), reply_to=message)
