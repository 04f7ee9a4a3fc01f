"""Nodes that work for another run: the server waits, tells so, asks again, and gives up in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flwr.app import Context, Message, RecordDict

from fedmoe_app import FedAvg
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.results.events import logger
from fedmoe_app.server import other_runs
from fedmoe_app.server.buffered import Buffered
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.collect import Collect, WaitForAll
from fedmoe_app.server.rounds import RoundLoop, RunFailedError
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.records import decode_state, encode_state
from tests.results.test_progress import Lines
from tests.server.test_strategy import good, toy_app
from tests.toy import Records, toy_state

BUSY = "busy with another run (ababab), last heard of 3 s ago"


class Nodes:
    """Clients of which some work for another run the first times that they are asked anything."""

    def __init__(self, busy: dict[int, int]) -> None:
        self.busy = busy
        self.trained: list[tuple[int, int]] = []
        self.released: list[int] = []
        self.app = toy_app(self._train)
        self.app.query("free")(self._free)

    def _answer(self, client: int) -> None:
        self.busy[client] = self.busy.get(client, 0) - 1
        if self.busy[client] >= 0:
            raise RuntimeError(f"client {client}: {BUSY}")

    def _train(self, client: int, server_round: int) -> RecordDict:
        self._answer(client)
        self.trained.append((server_round, client))
        return good(client, server_round)

    def _free(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if message.content.config_records["task"].get("release", False):
            self.released.append(client)
        else:
            self._answer(client)
        return Message(RecordDict(), reply_to=message)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    handler = Lines()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(other_runs, "FIRST_PAUSE", 0.01)
    before = logger.level
    logger.setLevel(20)  # by the method: what was answered for another level is forgotten
    yield handler.messages
    logger.setLevel(before)


def run(
    nodes: Nodes, limits: Limits, collect: Collect | None = None, rounds: int = 2
) -> tuple[RoundLoop, Records]:
    reports = Records()
    registry = ClientRegistry(longest_cooldown=8)
    loop = RoundLoop(MoEStrategy(FedAvg(), limits, registry=registry), collect)
    grid = InProcessGrid(nodes.app, {}, [{"partition-id": client} for client in range(3)])
    with task_identity():
        loop.run(grid, encode_state(toy_state()), rounds, timeout=5, callbacks=[reports])
    return loop, reports


def limits(wait: float = 60.0) -> Limits:
    return Limits(3, wait_for_clients=0, wait_for_other_runs=wait)


@pytest.mark.parametrize("policy", [WaitForAll, lambda: Buffered(3)], ids=["all", "buffered"])
def test_it_is_waited_for_and_the_run_is_the_same(
    said: list[str], policy: Callable[[], Collect]
) -> None:
    nodes = Nodes({1: 4, 2: 2})
    waited, reports = run(nodes, limits(), policy())
    calm, expected = run(Nodes({}), limits(), policy())
    assert [report.aggregated for report in reports] == [True] * 3
    assert [report.failures for report in reports[1:]] == [{}, {}]
    heads = [decode_state(one.arrays).dense["head.weight"].tolist() for one in (waited, calm)]
    assert heads[0] == heads[1]
    assert sorted(set(nodes.trained)) == [(r, c) for r in (1, 2) for c in range(3)]
    # Who is free is let go while the others are waited for: another run may need it.
    assert nodes.released[:1] == [0]
    assert set(nodes.released) <= {0, 2}
    told = [line for line in said if "waits" in line]
    assert told[0].startswith(f"round 1 waits: client 1, client 2: {BUSY}; asked again in ")
    assert told[0].endswith("at most (wait-for-other-runs)")
    assert reports[1].bytes_down > expected[1].bytes_down  # what was sent in vain counts
    assert waited.strategy.registry.cooldown.dump() == {}


def test_enough_others_are_enough(said: list[str]) -> None:
    nodes = Nodes({1: 99})
    _, reports = run(nodes, Limits(2, wait_for_clients=0, wait_for_other_runs=60))
    assert [report.aggregated for report in reports] == [True] * 3
    assert BUSY in reports[1].failures["client 1"]
    assert not [line for line in said if "waits" in line]


def test_the_waiting_has_an_end(said: list[str]) -> None:
    with pytest.raises(RunFailedError, match=rf"client 2: {BUSY[:21]}"):
        run(Nodes({2: 10**6}), limits(wait=0.3))
    assert len([line for line in said if "waits" in line]) > 1


def test_where_none_is_waited_for_the_round_fails_at_once(said: list[str]) -> None:
    with pytest.raises(RunFailedError, match="2 round"):
        run(Nodes({2: 2}), limits(wait=0.0))
    assert not [line for line in said if "waits" in line]


def test_a_node_whose_policy_refuses_the_run_has_not_failed() -> None:
    """It is told of, counted as refused, and asked in every round: its owner may allow the run."""
    asked: list[int] = []

    def train(client: int, server_round: int) -> RecordDict:
        if client == 1:
            asked.append(server_round)
            raise RuntimeError("this node's policy does not allow scheme = 'fedavg'")
        return good(client, server_round)

    records = Records()
    strategy = MoEStrategy(
        FedAvg(), Limits(2, wait_for_clients=0), registry=ClientRegistry(longest_cooldown=8)
    )
    grid = InProcessGrid(toy_app(train), {}, [{"partition-id": client} for client in range(3)])
    with task_identity():
        RoundLoop(strategy).run(grid, encode_state(toy_state()), 4, timeout=5, callbacks=[records])
    assert asked == [1, 2, 3, 4]
    assert [dict(record.rejected) for record in records[1:]] == [{"refused": 1}] * 4
    assert all("policy" in str(record.failures) for record in records[1:])
