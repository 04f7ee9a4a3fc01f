"""A client's score of the global model, as Flower records."""

from __future__ import annotations

import math
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.bounds import MAX_ITEMS
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.metrics import MAX_LOSS
from fedmoe_app.wire.numbers import check_entries, check_records, decode_client, whole
from fedmoe_app.wire.question import RECORD, Question
from fedmoe_app.wire.update import ClientScore

_NUMBERS = ("client", "loss", "correct", "items")


def encode_score(
    score: ClientScore, version: str = "", question: Question | None = None
) -> RecordDict:
    """Encode a client's score of the global model.

    Args:
        score: to be sent.
        version: of the received state that the node has on its disk, "" for none.
        question: of the message that it answers.
    """
    numbers = {name: getattr(score, name) for name in _NUMBERS}
    header = {"held": version, **(question or Question()).answer()}
    return RecordDict({"metrics": MetricRecord(numbers), RECORD: ConfigRecord(header)})


def decode_score(
    content: RecordDict, question: Question | None = None, most_items: int = MAX_ITEMS
) -> ClientScore:
    """Decode and validate what :func:`encode_score` has encoded.

    Args:
        content: of the reply.
        question: that was asked; None takes any.
        most_items: that the client can have scored.

    Raises:
        InvalidUpdateError: if anything is missing or unknown, a number is negative, not finite or
            larger than it can be, or if it answers another message.
    """
    check_records(content, ("metrics", RECORD))
    metrics, header = content.metric_records["metrics"], content.config_records[RECORD]
    check_entries(metrics, _NUMBERS)
    check_entries(header, ("held", *Question().answer()))
    if question is not None:
        question.check(header)
    items = whole(metrics["items"], "items", 0, most_items)
    correct = whole(metrics["correct"], "correct", 0, items)
    return ClientScore(decode_client(content), _loss(metrics["loss"], items), correct, items)


def _loss(value: Any, items: int) -> float:
    """Return a sum of losses over these items; none without items."""
    if type(value) is not float or not math.isfinite(value) or abs(value) > items * MAX_LOSS:
        raise InvalidUpdateError(
            f"loss = {shown(value)} of {items} items: must be finite, and {MAX_LOSS:g} an item at "
            "most",
            "metrics",
        )
    return value
