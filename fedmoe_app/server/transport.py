"""Messages out, replies in: waiting for nodes, sending a round, pulling replies as they arrive.

Flower's own ``send_and_receive`` polls every 3 s and hands back all replies at once; this module
polls faster and yields each reply when it is there, so that progress can be shown.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedmoe_app.flower.grid import (
    SUPERLINK,
    error_reply,
    is_deployed,
    runtime_client,
    send_heartbeat,
)
from fedmoe_app.server.busy import BusyNodes
from fedmoe_app.shown.text import visible

POLL_SECONDS = 0.25
PULL_AT_A_TIME = 4  # messages asked for in one call, which returns all those that are there
HEARTBEAT_SECONDS = 15.0

_UNKNOWN = 0  # Flower's code of an error that is none of its own
# What a reply raises that is not what Flower's own nodes make, while it is put together.
_UNREADABLE = (ValueError, TypeError, KeyError, DecodeError)
_MAX_REPORT = 20_000  # characters of a client's error that are looked at

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
        source, has_error = self.message.metadata.src_node_id, self.message.has_error()
        if source != self.node_id and not (has_error and source == SUPERLINK):
            return f"the reply came from another node, {source}"
        if has_error:
            return short_reason(self.message.error.reason or "")
        return None if self.message.has_content() else "the reply is empty"

    @property
    def is_own(self) -> bool:
        """Whether the node itself answered, so that it can be asked for something else."""
        return self.message is not None and self.message.metadata.src_node_id == self.node_id


def connected_nodes(grid: Grid) -> list[int]:
    """Return the ids of all connected nodes, sorted."""
    return sorted(grid.get_node_ids())


def prepare_clients(grid: Grid) -> None:
    """Let simulated clients import what they need while the server builds its model.

    That takes seconds of CPU in each process that runs clients, and there is at most one a CPU; so
    many are asked. Nobody waits for the answers: a client that did not get the question, or failed
    at it, imports when it trains. SuperNodes start a process for each message, and are not asked.
    """
    if is_deployed(grid):
        return
    nodes = connected_nodes(grid)[: os.cpu_count()]
    grid.push_messages([Message(RecordDict(), node, "query.prepare") for node in nodes])


def wait_for_nodes(
    grid: Grid,
    min_clients: int,
    seconds: float,
    busy: BusyNodes | None = None,
    connected: Callable[[Grid], list[int]] = connected_nodes,
) -> list[int]:
    """Return the ids of the nodes that can be asked, sorted, once there are ``min_clients``.

    Args:
        grid: of the run.
        min_clients: that are waited for.
        seconds: that are waited at most.
        busy: knows which nodes still work on an earlier message.
        connected: returns the connected nodes that may take part.

    Raises:
        NotEnoughClientsError: if there are fewer after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    busy = busy or BusyNodes()
    while True:
        present = connected(grid)
        nodes = busy.free(grid, present)
        if len(nodes) >= min_clients:
            return nodes
        if time.monotonic() >= deadline:
            behind = len(present) - len(nodes)
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
        replies = _pull_some(grid, message_ids[start : start + PULL_AT_A_TIME])
        replies.reverse()
        while replies:
            yield replies.pop()


def _pull_some(grid: Grid, message_ids: Sequence[str]) -> list[Message]:
    """Pull replies; one that Flower cannot read becomes an error and does not end the run."""
    try:
        return list(grid.pull_messages(message_ids))
    except _UNREADABLE as error:
        if len(message_ids) > 1:
            return [reply for one in message_ids for reply in _pull_some(grid, [one])]
        reason = f"the reply cannot be read: {type(error).__name__}"
        return [error_reply(message_ids[0], _UNKNOWN, reason)]


@contextmanager
def kept_alive(grid: Grid, seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Send heartbeats of this run within the block, beside those of Flower.

    Flower fails a run 60 s after its last heartbeat, and the thread that sends them ends for good
    at the first answer that it does not expect, such as one timeout of the SuperLink's database.
    This one goes on. A grid without a client for it (in simulation, or in a release of Flower that
    is made otherwise) gets no heartbeats from here.
    """
    if not is_deployed(grid):
        yield
        return
    ended = threading.Event()
    arguments = (runtime_client(grid), seconds, ended)
    thread = threading.Thread(
        target=_send_heartbeats, args=arguments, name="fedmoe-heartbeat", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5.0)


def _send_heartbeats(client: Any, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds):
        with suppress(Exception):  # the next one may arrive
            send_heartbeat(client)


def short_reason(reason: str, limit: int = 400) -> str:
    """Reduce what Flower reports of a client's exception to its own last words, on one line."""
    reason = reason[-_MAX_REPORT:]  # a client may send megabytes
    text = reason.rpartition("Message: ")[2].strip().removesuffix("'>").strip()
    text = _RAISED.sub("", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return visible(lines[-1] if lines else reason.strip(), limit) or "unknown error"
