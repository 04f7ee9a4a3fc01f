"""Nodes that are behind: left out until their late reply came or a pause is over."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict

from fedmoe_app import FedAvg
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.server.busy import BusyNodes
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.transport import NotEnoughClientsError, exchange, wait_for_nodes
from fedmoe_app.wire.records import encode_state
from tests.server.test_strategy import good, toy_app
from tests.toy import toy_state

FIRST, SECOND = 1000, 1001  # ids that InProcessGrid gives


class SlowGrid(InProcessGrid):
    """Keeps the replies of some nodes back; nodes can also vanish."""

    def __init__(self, num_nodes: int) -> None:
        configs = [{"partition-id": client} for client in range(num_nodes)]
        super().__init__(toy_app(good), {}, configs)
        self.slow: set[int] = set()
        self.gone: set[int] = set()
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.gone]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [
            message_id
            for message_id in message_ids
            if message_id in self._waiting
            and self._waiting[message_id].metadata.dst_node_id not in self.slow
        ]
        return super().pull_messages(ready)


def ask(grid: SlowGrid, busy: BusyNodes, timeout: float = 0.01) -> None:
    """Send every node a message and note who has not replied."""
    messages = [Message(RecordDict(), n, "query.describe") for n in grid.get_node_ids()]
    for reply in exchange(grid, messages, timeout):
        if reply.message is None:
            busy.missed(reply.message_id, reply.node_id, timeout=1000.0)
        else:
            busy.answered(reply.node_id)


@pytest.fixture(autouse=True)
def _identity() -> Iterable[None]:
    with task_identity():
        yield


def test_a_node_is_left_out_until_its_late_reply_is_dropped() -> None:
    late: list[int] = []
    grid, busy = SlowGrid(2), BusyNodes(lambda node_id, content: late.append(node_id))
    grid.slow = {SECOND}
    ask(grid, busy)
    assert busy.free(grid, [FIRST, SECOND]) == [FIRST]
    with pytest.raises(NotEnoughClientsError, match=r"1 of min-clients = 2 .*\(1 more still work"):
        wait_for_nodes(grid, 2, 0, busy)
    grid.slow = set()
    assert wait_for_nodes(grid, 2, 0, busy) == [FIRST, SECOND]
    assert late == [SECOND]


def test_a_node_that_never_replies_is_asked_again_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("fedmoe_app.server.busy.time.monotonic", lambda: now[0])
    grid, busy = SlowGrid(1), BusyNodes()
    grid.slow = {FIRST}

    def pause(message_id: str) -> float:
        """Return for how long the node is left out when it misses a message."""
        busy.missed(message_id, FIRST, timeout=10.0)
        started = now[0]
        while not busy.free(grid, [FIRST]):
            now[0] += 1.0
        return now[0] - started

    assert [pause(name) for name in "abc"] == [10.0, 20.0, 40.0]
    busy.answered(FIRST)
    assert pause("d") == 10.0


def test_messages_live_longer_than_a_round_may_take() -> None:
    """Flower drops a message after 12 hours unless told otherwise."""
    grid = SlowGrid(1)
    messages = [Message(RecordDict(), FIRST, "query.describe")]
    list(exchange(grid, messages, timeout=100_000.0))
    assert messages[0].metadata.ttl == 200_000.0


class Run(Callback):
    """Rounds of the toy clients on a slow grid, changed after some rounds."""

    def __init__(
        self, grid: SlowGrid, limits: Limits, rounds: int, after: dict[int, set[int]]
    ) -> None:
        self.reports: list[RoundRecord] = []
        self.grid, self.after = grid, after
        loop = RoundLoop(MoEStrategy(FedAvg(), limits))
        arrays = encode_state(toy_state())
        # The timeout of a round: the toy clients answer at once, or not at all.
        loop.run(grid, arrays, rounds, 0.6, lambda *_: None, [self])

    def on_round(self, record: RoundRecord) -> None:
        self.reports.append(record)
        self.grid.slow = self.after.get(record.server_round, self.grid.slow)

    @property
    def clients(self) -> list[list[int]]:
        return [[update.client for update in report.updates] for report in self.reports[1:]]


def test_a_slow_node_misses_rounds_is_not_asked_meanwhile_and_comes_back() -> None:
    grid = SlowGrid(3)
    grid.slow = {SECOND}
    run = Run(grid, Limits(min_clients=2, wait_for_clients=0), 3, {2: set()})
    assert run.clients == [[0, 2], [0, 2], [0, 1, 2]]
    assert run.reports[1].failures == {f"node {SECOND}": "no reply within 0.6 s"}
    assert [report.num_asked for report in run.reports] == [0, 3, 2, 3]
    assert grid.asked.count(SECOND) == 2  # in round 1 and in round 3


def test_a_run_with_too_few_nodes_left_stops_with_its_state() -> None:
    grid = SlowGrid(2)
    grid.slow = {SECOND}
    with pytest.raises(NotEnoughClientsError, match="1 of min-clients = 2"):
        Run(grid, Limits(min_clients=2, wait_for_clients=0, max_failed_rounds=9), 3, {})
    assert set(grid.asked) == {FIRST, SECOND}
