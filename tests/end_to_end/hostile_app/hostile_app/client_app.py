"""Nodes that answer honestly, but for one that does what its script says in a round.

Node config: ``partition-id``; ``script`` of a hostile node: attacks by round, as in
``2:as-victim,3:raises``, with ``describe:0`` (the number that it tells when asked for it) and
``train:NAME`` and ``score:NAME`` for every round; ``victim``; ``memory``, a folder. An honest node
raises in the rounds of ``fails``, as in ``4;5``.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmoe_app.wire.records import Question, decode_task, encode_number, encode_score

from .attacks import SCORES, TRAIN, Turn, honest, score

NOT_ASKED = "not-asked"  # an answer to a message that there never was
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    turn = _turn(message, context)
    server_round = str(turn.task.server_round)
    if server_round in str(context.node_config.get("fails", "")).split(";"):
        raise RuntimeError(f"client {turn.own}: broken disk")
    script = _script(context)
    name = script.get(server_round, script.get("train", ""))
    reply = Message(TRAIN.get(name, honest)(turn), reply_to=message)
    if name == NOT_ASKED:
        vars(reply.metadata)["_reply_to_message_id"] = "0" * 64
    return reply


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    turn = _turn(message, context)
    attack = SCORES.get(_script(context).get("score", ""))
    if attack is not None:
        return Message(attack(turn), reply_to=message)
    content = encode_score(score(turn.own), question=turn.task.question)
    return Message(content, reply_to=message)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    number = int(_script(context).get("describe", context.node_config["partition-id"]))
    return Message(encode_number(number, Question.of(message.content)), reply_to=message)


def _turn(message: Message, context: Context) -> Turn:
    config = context.node_config
    return Turn(
        int(config["partition-id"]),
        int(config.get("victim", 0)),
        decode_task(message.content),
        Path(str(config["memory"])) if "memory" in config else None,
    )


def _script(context: Context) -> dict[str, str]:
    text = str(context.node_config.get("script", ""))
    return dict(part.split(":", 1) for part in text.split(",") if part)
