"""Delta sync: a node is sent the tensors that differ from what it has, all when in doubt.

A node tells with every reply which version of the state it has on its disk
(:mod:`fedmoe_app.wire.versions`). The server remembers what was in the versions that nodes have,
as hashes, never as values, and leaves out of the next message what has the same hash. A node that
cannot put the state together, because its file is lost, answers with an error that names the
reason, and is sent everything at once, within the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedmoe_app.server.transport import Reply, exchange
from fedmoe_app.wire.arrays import read_array, to_array
from fedmoe_app.wire.records import decode_version, record_bytes
from fedmoe_app.wire.versions import BASE, CANNOT_BUILD, DROPPED, VERSION, hashes, version_of

_TYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class DeltaSync:
    """What the nodes have, and what they are sent.

    Args:
        changed_only: leave out what a node has; False sends everything every time.
        codec: ``fp32``, ``fp16`` or ``bf16``: type of the values on the way.
    """

    def __init__(self, changed_only: bool = True, codec: str = "fp32") -> None:
        self._changed_only = changed_only
        self._dtype = _TYPES[codec]
        self._held: dict[int, str] = {}  # node -> version that it says it has
        self._known: dict[str, dict[str, str]] = {}  # version -> name -> hash
        # node -> the whole of the message that it has not answered yet; each is a whole state
        self._full: dict[int, RecordDict] = {}

    def address(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        message_type: str,
        group_id: str = "",
        own: Mapping[int, RecordDict] | None = None,
    ) -> tuple[list[Message], dict[int, int]]:
        """Return a message for each node, and their sizes in bytes by node.

        Nodes that have the same version share the arrays of their messages. Call it once for each
        content where nodes are to have different ones.

        Args:
            content: from ``encode_task``, with the whole state in ``arrays``.
            nodes: to send it to.
            message_type, group_id: Flower's.
            own: records that are one node's alone, by node.
        """
        own = own or {}
        full = self._versioned(content)
        version = str(full.config_records["task"][VERSION])
        self._forget_old_versions(version)
        by_base: dict[str, tuple[RecordDict, int]] = {}
        messages, sizes = [], {}
        for node in nodes:
            more = own.get(node, RecordDict())
            self._full[node] = RecordDict({**full, **more}) if more else full
            base = self._base(node)
            if base not in by_base:
                of_base = self._laid_over(full, base) if base else full
                by_base[base] = of_base, record_bytes(of_base)
            shared, size = by_base[base]
            sent = RecordDict({**shared, **more}) if more else shared
            messages.append(Message(sent, node, message_type, group_id=group_id))
            sizes[node] = size + (record_bytes(more) if more else 0)
        return messages, sizes

    def exchange(
        self,
        grid: Grid,
        messages: Sequence[Message],
        timeout: float,
        on_resend: Callable[[int], None] = lambda size: None,
    ) -> Iterator[Reply]:
        """Send and yield replies as :func:`fedmoe_app.server.transport.exchange` does, with a
        second try.

        A node that cannot put the state together gets the whole of it when the others are done;
        ``on_resend`` is called with the bytes of each such message.
        """
        started = time.monotonic()
        sent = {message.metadata.dst_node_id: message.metadata for message in messages}
        again: dict[int, RecordDict] = {}  # node -> the whole message
        for reply in exchange(grid, messages, timeout):
            full = self._full.get(reply.node_id)
            if self.learn(reply) or full is None:
                yield reply
            else:
                again[reply.node_id] = full
            del reply, full  # before the next one is pulled
        if again:
            left = max(0.0, timeout - (time.monotonic() - started))
            whole = [self._whole(sent[node], full) for node, full in sorted(again.items())]
            for message in whole:
                on_resend(record_bytes(message.content))
            for reply in exchange(grid, whole, left):
                self.learn(reply)
                yield reply
                del reply

    def _versioned(self, content: RecordDict) -> RecordDict:
        """Return the content with its state as it travels, and the state's version."""
        arrays = content.array_records["arrays"]
        if self._dtype is not None:
            arrays = ArrayRecord(
                {n: to_array(read_array(a), self._dtype) for n, a in arrays.items()}
            )
        version = ""
        if self._changed_only:
            by_name = hashes(arrays)
            version = version_of(by_name)
            self._known[version] = by_name
        return _with(content, arrays, version, "")

    def _laid_over(self, full: RecordDict, base: str) -> RecordDict:
        version = str(full.config_records["task"][VERSION])
        old, new = self._known[base], self._known[version]
        arrays: dict[str, Array] = dict(full.array_records["arrays"].items())
        changed = {name: array for name, array in arrays.items() if old.get(name) != new[name]}
        if len(changed) == len(arrays):
            return full  # nothing is saved, so nothing need be on the node's disk
        laid_over = _with(full, ArrayRecord(changed), version, base)
        laid_over.config_records["task"][DROPPED] = sorted(old.keys() - new.keys())
        return laid_over

    def _base(self, node: int) -> str:
        """Return the version that a node's message may build on, or ""."""
        held = self._held.get(node, "")
        return held if self._changed_only and held in self._known else ""

    def _whole(self, sent: Metadata, full: RecordDict) -> Message:
        self._full[sent.dst_node_id] = full
        return Message(full, sent.dst_node_id, sent.message_type, group_id=sent.group_id)

    def learn(self, reply: Reply) -> bool:
        """Note what a node has now; False if it could not put its state together: send it all.

        A node's word counts only for the version that it was just sent.
        """
        sent = self._full.pop(reply.node_id, None)
        if reply.failure is not None and CANNOT_BUILD in reply.failure:
            self._held.pop(reply.node_id, None)
            return False
        if reply.message is None or reply.failure is not None:
            return True  # what the node had, it still has
        held = decode_version(reply.message.content)
        if sent is not None and held and held == sent.config_records["task"][VERSION]:
            self._held[reply.node_id] = held
        else:
            self._held.pop(reply.node_id, None)
        return True

    def _forget_old_versions(self, current: str) -> None:
        """Keep the contents of versions that some node has, or is being sent."""
        sent = {str(full.config_records["task"][VERSION]) for full in self._full.values()}
        used = {current, *self._held.values(), *sent}
        self._known = {version: known for version, known in self._known.items() if version in used}


def _with(content: RecordDict, arrays: ArrayRecord, version: str, base: str) -> RecordDict:
    """Return a copy of a task with these arrays and versions; the other records are shared."""
    task = type(content.config_records["task"])(dict(content.config_records["task"]))
    task[VERSION], task[BASE] = version, base
    return RecordDict({**content, "arrays": arrays, "task": task})
