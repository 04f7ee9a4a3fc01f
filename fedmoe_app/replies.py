"""Replies of a round: decoded, validated and put in client order, or rejected with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Message

from fedmoe_app.roster import Roster
from fedmoe_app.wire.records import UpdateSpec, decode_score, decode_update, record_bytes
from fedmoe_app.wire.update import ClientScore, ClientUpdate, InvalidUpdateError


@dataclass
class Decoded:
    """What came of the replies.

    Attributes:
        updates: the usable ones, in client order.
        bytes_up: size of each usable reply, by client.
        rejected: reason by client, or by node where the client is not known.
        kinds: how many were rejected, by :attr:`InvalidUpdateError.kind`.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    bytes_up: dict[int, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)


def decode_updates(replies: Iterable[Message], spec: UpdateSpec, roster: Roster) -> Decoded:
    """Decode training replies. The result does not depend on their order."""
    decoded = Decoded()
    by_client: dict[int, list[tuple[ClientUpdate, int]]] = {}
    for message in replies:
        try:
            update = decode_update(message.content, spec)
        except InvalidUpdateError as error:
            decoded.rejected[roster.name(message.metadata.src_node_id)] = f"reply rejected: {error}"
            decoded.kinds[error.kind] += 1
            continue
        by_client.setdefault(update.client, []).append((update, record_bytes(message.content)))
    for client, copies in sorted(by_client.items()):
        if len(copies) > 1:
            # Which of them is right cannot be told, and the first to arrive is no reason.
            decoded.kinds["client"] += len(copies)
            decoded.rejected[f"client {client}"] = (
                f"reply rejected: {len(copies)} nodes have partition-id = {client}; "
                "give each its own"
            )
            continue
        decoded.updates.append(copies[0][0])
        decoded.bytes_up[client] = copies[0][1]
    _drop_other_splits(decoded)
    return decoded


def _drop_other_splits(decoded: Decoded) -> None:
    """Reject clients that split the data into another number of partitions than most do."""
    numbers = Counter(u.num_partitions for u in decoded.updates if u.num_partitions)
    if len(numbers) < 2:
        return
    usual = max(numbers, key=lambda number: (numbers[number], -number))
    for update in list(decoded.updates):
        if update.num_partitions not in (0, usual):
            decoded.updates.remove(update)
            decoded.kinds["client"] += 1
            del decoded.bytes_up[update.client]
            decoded.rejected[f"client {update.client}"] = (
                f"reply rejected: num-partitions = {update.num_partitions}, but most nodes have "
                f"{usual}; give all nodes the same"
            )


def decode_scores(
    replies: Iterable[Message], roster: Roster
) -> tuple[list[ClientScore], dict[str, str]]:
    """Decode evaluation replies into scores in client order, and reasons for the rejected ones."""
    by_client: dict[int, list[ClientScore]] = {}
    rejected: dict[str, str] = {}
    for message in replies:
        try:
            score = decode_score(message.content)
        except InvalidUpdateError as error:
            rejected[roster.name(message.metadata.src_node_id)] = f"score rejected: {error}"
            continue
        by_client.setdefault(score.client, []).append(score)
    for client, copies in by_client.items():
        if len(copies) > 1:  # as in decode_updates: the order of arrival must not decide
            rejected[f"client {client}"] = (
                f"score rejected: {len(copies)} nodes have partition-id = {client}"
            )
    return [c[0] for _, c in sorted(by_client.items()) if len(c) == 1], rejected
