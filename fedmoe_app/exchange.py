"""Messages out, replies in: waiting for nodes, sending a round, pulling replies as they arrive.

Flower's own ``send_and_receive`` polls every 3 s and hands back all replies at once; this module
polls faster and yields each reply when it is there, so that progress can be shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.25
PULL_AT_A_TIME = 4  # messages asked for in one call, which returns all those that are there


class NotEnoughClientsError(RuntimeError):
    """Fewer nodes than ``min-clients`` were there in time."""


@dataclass(frozen=True)
class Reply:
    """A node's answer to one message.

    Attributes:
        node_id: the node that was asked. (An error reply about a lost node names the SuperLink as
            its source, so the source in the message cannot be used.)
        message: the answer, or None if there was none in time.
        seconds: from sending to receiving.
        reason: why there is no message.
    """

    node_id: int
    message: Message | None
    seconds: float
    reason: str = "no reply in time"

    @property
    def failure(self) -> str | None:
        """Why this reply cannot be used, or None if it has content."""
        if self.message is None:
            return self.reason
        if self.message.has_error():
            return short_reason(self.message.error.reason or "")
        return None


def wait_for_nodes(grid: Grid, min_clients: int, seconds: float) -> list[int]:
    """Return the ids of the connected nodes, sorted, once there are at least ``min_clients``.

    Raises:
        NotEnoughClientsError: if there are fewer after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= min_clients:
            return nodes
        if time.monotonic() >= deadline:
            raise NotEnoughClientsError(
                f"{len(nodes)} of min-clients = {min_clients} nodes connected within "
                f"wait-for-clients = {seconds:g} s; start more nodes (in simulation: "
                "--federation-config num-supernodes=N) or lower min-clients"
            )
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def exchange(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Reply]:
    """Send messages and yield a reply for each, in order of arrival, the missing ones last."""
    started = time.monotonic()
    pushed = set(grid.push_messages(messages))  # sets the messages' ids
    waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    for message_id in [i for i in waiting if i not in pushed]:
        yield Reply(waiting.pop(message_id), None, 0.0, "the message could not be sent")
    while waiting and time.monotonic() - started < timeout:
        before = len(waiting)
        for message in pull(grid, list(waiting)):
            node_id = waiting.pop(message.metadata.reply_to_message_id, None)
            if node_id is not None:
                yield Reply(node_id, message, time.monotonic() - started)
            del message
        if waiting and len(waiting) == before:
            time.sleep(POLL_SECONDS)
    for node_id in waiting.values():
        yield Reply(node_id, None, timeout, f"no reply within {timeout:g} s")


def pull(grid: Grid, message_ids: Sequence[str]) -> Iterator[Message]:
    """Yield the replies that are there, few in memory at a time and none once it is taken over."""
    for start in range(0, len(message_ids), PULL_AT_A_TIME):
        replies = list(grid.pull_messages(message_ids[start : start + PULL_AT_A_TIME]))
        replies.reverse()
        while replies:
            yield replies.pop()


def short_reason(reason: str, limit: int = 400) -> str:
    """Reduce what Flower reports of a client's exception to its own last words."""
    text = reason.rpartition("Message: ")[2].strip().removesuffix("'>").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else reason.strip() or "unknown error")[:limit]
