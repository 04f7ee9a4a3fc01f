"""Sending and pulling: silent nodes, late replies, waiting with a limit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.server.transport import (
    NotEnoughClientsError,
    Reply,
    exchange,
    is_deployed,
    kept_alive,
    prepare_clients,
    pull,
    short_reason,
    wait_for_nodes,
)

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


class SomeSilent(InProcessGrid):
    """A grid in which some nodes never answer, as when their machine is gone."""

    silent: frozenset[int] = frozenset()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        loud = [i for i in message_ids if self._waiting[i].metadata.dst_node_id not in self.silent]
        return super().pull_messages(loud)


def grid(num_nodes: int) -> SomeSilent:
    return SomeSilent(app, {}, [{"partition-id": i} for i in range(num_nodes)])


def test_every_message_gets_a_reply_the_missing_ones_last() -> None:
    nodes = grid(3)
    first, second, third = nodes.get_node_ids()
    nodes.silent = frozenset([second])
    with task_identity():
        messages = [Message(RecordDict(), node, "query.hello") for node in nodes.get_node_ids()]
        replies = list(exchange(nodes, messages, timeout=0.3))
    assert [reply.node_id for reply in replies] == [first, third, second]
    assert [reply.failure is None for reply in replies] == [True, True, False]
    assert replies[2].message is None
    assert "no reply within" in (replies[2].failure or "")


class CannotPush(InProcessGrid):
    """A grid that takes no message, as Flower's does when one is too large."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        super().push_messages(messages)
        return []


def test_a_message_that_cannot_be_sent_fails_at_once() -> None:
    with task_identity():
        message = Message(RecordDict(), 1000, "query.hello")
        (reply,) = exchange(CannotPush(app, {}, [{}]), [message], timeout=3600)
    assert reply.failure == "the message could not be sent"


def test_an_exception_of_a_client_is_a_failure_with_its_words() -> None:
    with task_identity():
        message = Message(RecordDict(), next(iter(grid(1).get_node_ids())), "query.unknown")
        (reply,) = exchange(grid(1), [message], timeout=5)
    assert "No query function registered" in (reply.failure or "")


class Unreadable(InProcessGrid):
    """A grid in which one node's reply cannot be put together, as when its objects are damaged."""

    broken = 1001

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message_id in list(message_ids):
            message = self._waiting.pop(message_id, None)
            if message is not None and message.metadata.dst_node_id == self.broken:
                raise ValueError("Mismatch in children object IDs")
            found += [] if message is None else [self._answer(message)]
        return found


def test_a_reply_that_cannot_be_read_fails_alone_and_ends_no_run() -> None:
    """What had been pulled with it is lost; who was pulled after it is not."""
    nodes = Unreadable(app, {}, [{}] * 6)
    with task_identity():
        messages = [Message(RecordDict(), node, "query.hello") for node in nodes.get_node_ids()]
        replies = {reply.node_id: reply for reply in exchange(nodes, messages, timeout=0.2)}
    good = {node for node, reply in replies.items() if reply.failure is None}
    assert good == {1002, 1003, 1004, 1005}
    assert replies.keys() == set(nodes.get_node_ids())
    broken = Unreadable(app, {}, [{}, {}])
    broken.broken = 1000
    with task_identity():
        asked = Message(RecordDict(), 1000, "query.hello")
        asked.metadata.__dict__["_message_id"] = "1"
        broken._waiting = {"1": asked}
        (reply,) = pull(broken, ["1"])
    assert Reply(1000, reply, 0.0).failure == "the reply cannot be read: ValueError"
    assert not Reply(1000, reply, 0.0).is_own


def test_a_reply_of_another_node_than_the_one_asked_is_none() -> None:
    with task_identity():
        content = Message(RecordDict(), reply_to=Message(RecordDict(), 1001, "query.hello"))
        error = Message(Error(0, "gone"), reply_to=Message(RecordDict(), 1001, "query.hello"))
        lost = Message(Error(5, "node is gone"), reply_to=Message(RecordDict(), 1, "query.hello"))
    assert Reply(1000, content, 0.0).failure == "the reply came from another node, 1001"
    assert Reply(1000, error, 0.0).failure == "the reply came from another node, 1001"
    assert Reply(1001, content, 0.0).failure is None
    assert Reply(1000, lost, 0.0).failure == "node is gone"  # the SuperLink says so


@pytest.mark.parametrize(
    "text",
    [
        "x\n" * 5_000_000,
        "y" * 10**7,
        "\x1b[31mclient 1: a\x07\n" * 100_000,
        "\x00" * 10**6,
        "\u202e",
    ],
)
def test_an_error_of_any_length_is_one_short_printable_line(text: str) -> None:
    reason = short_reason(text)
    assert 0 < len(reason) <= 400
    assert reason.isprintable()


def test_waiting_for_nodes_ends_at_the_limit_and_names_both_numbers() -> None:
    started = time.monotonic()
    with pytest.raises(NotEnoughClientsError, match=r"2 of min-clients = 3 nodes .* = 0.3 s"):
        wait_for_nodes(grid(2), min_clients=3, seconds=0.3)
    assert time.monotonic() - started >= 0.3
    assert len(wait_for_nodes(grid(3), min_clients=3, seconds=0)) == 3


class UneasySuperLink:
    """Answers the first heartbeats with errors, as a SuperLink with a busy database does."""

    def __init__(self) -> None:
        self.heartbeats = 0

    def SendTaskHeartbeat(self, request: object) -> None:  # Flower's name
        self.heartbeats += 1
        if self.heartbeats < 3:
            raise RuntimeError("500 Internal Server Error")


def test_heartbeats_go_on_after_errors_and_end_with_the_run() -> None:
    deployed = grid(1)
    superlink = deployed._runtime_client = UneasySuperLink()  # as Flower's grid has one
    assert is_deployed(deployed) and not is_deployed(grid(1))
    with kept_alive(deployed, seconds=0.01):
        deadline = time.monotonic() + 30
        while superlink.heartbeats < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    count = superlink.heartbeats
    time.sleep(0.1)
    assert superlink.heartbeats == count
    with kept_alive(grid(1), seconds=0.0):
        pass


class Listening(InProcessGrid):
    """A grid that notes what is sent."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent = list(messages)
        return super().push_messages(self.sent)


def test_as_many_simulated_clients_prepare_as_can_work_at_a_time() -> None:
    cpus = os.cpu_count() or 1
    for num_nodes in (1, cpus + 2):
        nodes = Listening(app, {}, [{"partition-id": i} for i in range(num_nodes)])
        with task_identity():
            prepare_clients(nodes)
        assert len({message.metadata.dst_node_id for message in nodes.sent}) == min(num_nodes, cpus)
        assert {message.metadata.message_type for message in nodes.sent} == {"query.prepare"}
