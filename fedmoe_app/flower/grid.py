"""What a ServerApp's grid is made of: heartbeats of its run, replies that cannot be read."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import Error, Message, Metadata
from flwr.serverapp import Grid

SUPERLINK = 1  # the node id under which the SuperLink reports that a node is lost


def runtime_client(grid: Grid) -> Any:
    """Return the grid's client of the Runtime API; None in a simulation or in one process."""
    return getattr(grid, "_runtime_client", None)


def is_deployed(grid: Grid) -> bool:
    """Whether the nodes are SuperNodes, and not simulated or called in this process."""
    return hasattr(runtime_client(grid), "SendTaskHeartbeat")


def send_heartbeat(client: Any) -> None:
    """Tell the SuperLink that the run goes on.

    Args:
        client: see :func:`runtime_client`.
    """
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def error_reply(message_id: str, code: int, reason: str) -> Message:
    """Return a reply with an error that no node sent, for the message with this id."""
    from flwr.app.message import make_message

    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK,
        dst_node_id=SUPERLINK,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=1.0,
        message_type="train",
    )
    return make_message(metadata=metadata, error=Error(code, reason))
