"""Messages out, replies in: waiting for nodes, sending a round, pulling replies as they arrive.

Flower's own ``send_and_receive`` polls every 3 s and hands back all replies at once; this module
polls faster and yields each reply when it is there, so that progress can be shown.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedmoe_app.busy import BusyNodes

POLL_SECONDS = 0.25
PULL_AT_A_TIME = 4  # messages asked for in one call, which returns all those that are there
HEARTBEAT_SECONDS = 15.0

# How Flower's client processes begin the reason of an exception that the app raised.
_RAISED = re.compile(r"^<class '[^']*'>:<'")


def poll_interval(elapsed: float) -> float:
    """Return the seconds until the next look for replies: about 2% of those waited so far."""
    return min(1.0, max(0.05, elapsed / 50))


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
        message_id: of the message that was sent; "" if it could not be.
    """

    node_id: int
    message: Message | None
    seconds: float
    reason: str = "no reply in time"
    message_id: str = ""

    @property
    def failure(self) -> str | None:
        """Why this reply cannot be used, or None if it has content."""
        if self.message is None:
            return self.reason
        if self.message.has_error():
            return short_reason(self.message.error.reason or "")
        return None


def wait_for_nodes(
    grid: Grid, min_clients: int, seconds: float, busy: BusyNodes | None = None
) -> list[int]:
    """Return the ids of the nodes that can be asked, sorted, once there are ``min_clients``.

    Raises:
        NotEnoughClientsError: if there are fewer after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    busy = busy or BusyNodes()
    while True:
        connected = sorted(grid.get_node_ids())
        nodes = busy.free(grid, connected)
        if len(nodes) >= min_clients:
            return nodes
        if time.monotonic() >= deadline:
            behind = len(connected) - len(nodes)
            note = f" ({behind} more still work on an earlier round)" if behind else ""
            raise NotEnoughClientsError(
                f"{len(nodes)} of min-clients = {min_clients} nodes connected within "
                f"wait-for-clients = {seconds:g} s{note}; start more nodes (in simulation: "
                "--federation-config num-supernodes=N) or lower min-clients"
            )
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def exchange(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Reply]:
    """Send messages and yield a reply for each, in order of arrival, the missing ones last."""
    started = time.monotonic()
    for message in messages:
        # Flower drops messages after 12 hours, however long the round may take.
        message.metadata.ttl = max(message.metadata.ttl, 2 * timeout)
    pushed = set(grid.push_messages(messages))  # sets the messages' ids
    waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    for message_id in [i for i in waiting if i not in pushed]:
        yield Reply(waiting.pop(message_id), None, 0.0, "the message could not be sent")
    while waiting and time.monotonic() - started < timeout:
        before = len(waiting)
        for message in pull(grid, list(waiting)):
            node_id = waiting.pop(message.metadata.reply_to_message_id, None)
            if node_id is not None:
                message_id = message.metadata.reply_to_message_id
                yield Reply(node_id, message, time.monotonic() - started, message_id=message_id)
            del message
        if waiting and len(waiting) == before:
            time.sleep(poll_interval(time.monotonic() - started))
    for message_id, node_id in waiting.items():
        yield Reply(node_id, None, timeout, f"no reply within {timeout:g} s", message_id)


def pull(grid: Grid, message_ids: Sequence[str]) -> Iterator[Message]:
    """Yield the replies that are there, few in memory at a time and none once it is taken over."""
    for start in range(0, len(message_ids), PULL_AT_A_TIME):
        replies = list(grid.pull_messages(message_ids[start : start + PULL_AT_A_TIME]))
        replies.reverse()
        while replies:
            yield replies.pop()


@contextmanager
def kept_alive(grid: Grid, seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Send heartbeats of this run within the block, beside those of Flower.

    Flower fails a run 60 s after its last heartbeat, and the thread that sends them ends for good
    at the first answer that it does not expect, such as one timeout of the SuperLink's database.
    This one goes on. It relies on how Flower 1.39 is made; a grid made otherwise (in simulation, or
    in another release) gets no heartbeats from here.
    """
    if not is_deployed(grid):
        yield
        return
    ended = threading.Event()
    arguments = (_client_of(grid), seconds, ended)
    thread = threading.Thread(
        target=_send_heartbeats, args=arguments, name="fedmoe-heartbeat", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5.0)


def is_deployed(grid: Grid) -> bool:
    """Whether the nodes are SuperNodes, and not simulated or called in this process."""
    return hasattr(_client_of(grid), "SendTaskHeartbeat")


def _client_of(grid: Grid) -> Any:
    return getattr(grid, "_runtime_client", None)


def _send_heartbeats(client: Any, seconds: float, ended: threading.Event) -> None:
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    while not ended.wait(seconds):
        with suppress(Exception):  # the next one may arrive
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def short_reason(reason: str, limit: int = 400) -> str:
    """Reduce what Flower reports of a client's exception to its own last words."""
    text = reason.rpartition("Message: ")[2].strip().removesuffix("'>").strip()
    text = _RAISED.sub("", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else reason.strip() or "unknown error")[:limit]
