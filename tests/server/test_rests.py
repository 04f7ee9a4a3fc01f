"""Who is asked: rests after failures, a fixed number, chances by examples."""

from __future__ import annotations

from collections import Counter

import pytest
from flwr.app import ArrayRecord, RecordDict

from fedmoe_app import FedAvg
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.server.clients import ClientRegistry, Cooldown, sample_size
from fedmoe_app.server.collect import AGAINST
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.records import encode_state
from tests.server.test_strategy import Run, good, toy_app
from tests.toy import Records, toy_state


def test_a_rest_doubles_with_every_failure_up_to_its_limit() -> None:
    rests, tried, now = Cooldown(longest=4), [], 1
    while len(tried) < 5:
        if not rests.order(now):
            tried.append(now)
            rests.note(now, ["client 1"], [])
        now += 1
    assert tried == [1, 2, 4, 7, 12]  # rests of 0, 1, 2, 4 rounds


def test_a_good_reply_ends_the_row() -> None:
    rests = Cooldown(longest=8)
    rests.note(1, ["client 1"], [])
    rests.note(2, [], ["client 1"])
    rests.note(3, ["client 1"], [])
    assert rests.order(4) == []
    rests.note(4, ["client 1"], [])
    assert rests.order(5) == ["client 1"]
    assert rests.order(6) == []


def test_rests_survive_a_checkpoint() -> None:
    rests, again = Cooldown(longest=8), Cooldown(longest=8)
    rests.note(1, ["client 1", "node 7"], [])
    again.load(rests.dump())
    again.note(3, ["client 1"], [])
    assert again.order(4) == ["client 1"]


def failing_client_1(client: int, server_round: int) -> RecordDict:
    if client == 1 and server_round != 6:
        raise RuntimeError("out of memory")
    return good(client, server_round)


@pytest.mark.parametrize(("min_clients", "asked"), [(1, [3, 3, 2, 3, 2, 2, 3]), (3, [3] * 7)])
def test_a_failing_client_is_asked_less_often_but_never_too_few(
    min_clients: int, asked: list[int]
) -> None:
    limits = Limits(min_clients, wait_for_clients=1, max_failed_rounds=9)
    registry = ClientRegistry(longest_cooldown=8)
    run = Run(failing_client_1, [0, 1, 2], rounds=7, limits=limits, registry=registry)
    assert [report.num_asked for report in run.reports[1:]] == asked


def test_a_client_cannot_say_that_it_went_another_way_and_has_not_failed() -> None:
    def says_so(client: int, server_round: int) -> RecordDict:
        if client == 1:
            raise RuntimeError(AGAINST)
        return good(client, server_round)

    limits = Limits(1, wait_for_clients=1, max_failed_rounds=9)
    registry = ClientRegistry(longest_cooldown=8)
    run = Run(says_so, [0, 1, 2], rounds=5, limits=limits, registry=registry)
    assert [report.num_asked for report in run.reports[1:]] == [3, 3, 2, 3, 2]


def test_a_fixed_number_of_clients() -> None:
    assert sample_size(10, 1.0, 2, fixed=4) == 4
    assert sample_size(3, 1.0, 2, fixed=4) == 3
    assert sample_size(10, 0.25, 2) == 3
    limits = Limits(min_clients=1, wait_for_clients=1, clients_per_round=2)
    run = Run(good, [0, 1, 2, 3], rounds=3, limits=limits)
    assert [report.num_asked for report in run.reports[1:]] == [2, 2, 2]


def test_chances_go_by_examples() -> None:
    registry, clients = ClientRegistry(seed=5, sampling="examples"), range(4)
    grid = InProcessGrid(toy_app(good), {}, [{"partition-id": c} for c in clients])
    registry.sizes = {0: 10, 1: 10, 2: 10, 3: 270}
    with task_identity():
        drawn = Counter(
            registry.clients[node]
            for server_round in range(200)
            for node in registry.draw(grid, list(grid.get_node_ids()), server_round, 1)
        )
    # Client 3 with chance 0.9; the standard deviation of its share is 0.021.
    assert 0.83 <= drawn[3] / 200 <= 0.97
    assert sum(drawn.values()) == 200


def test_a_client_of_unknown_size_counts_as_the_mean() -> None:
    registry = ClientRegistry(seed=5, sampling="examples")
    registry.sizes = {0: 100}
    drawn = Counter(registry._sample([0, 1], server_round, 1)[0] for server_round in range(200))
    assert 0.35 <= drawn[1] / 200 <= 0.65


@pytest.mark.parametrize("other_nodes", [False, True])
@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_resumed_run_asks_whom_the_uninterrupted_one_asks(done: int, other_nodes: bool) -> None:
    whole, parts = Records(), Records()
    start(restful(), 6, encode_state(toy_state()), whole)
    first, second = restful(), restful()
    start(first, done, encode_state(toy_state()), parts)
    second.restore(first.snapshot())
    registry = second.strategy.registry
    if other_nodes:
        registry.clients.clear()  # SuperNodes that were started again have new ids
    start(second, 6, encode_state(first.strategy.state), parts)
    assert asked(parts) == asked(whole)
    assert ["client 1"] in [failed for _, failed in asked(whole)]
    assert registry.sizes == {0: 1, 2: 3, 3: 4}


def restful() -> RoundLoop:
    """Draws two clients by their examples; one that failed is left out for a while."""
    limits = Limits(1, wait_for_clients=1, clients_per_round=2)
    registry = ClientRegistry(seed=3, sampling="examples", longest_cooldown=8)
    return RoundLoop(MoEStrategy(FedAvg(), limits, registry=registry))


def start(loop: RoundLoop, rounds: int, arrays: ArrayRecord, records: Records) -> None:
    grid = InProcessGrid(toy_app(failing_client_1), {}, [{"partition-id": c} for c in range(4)])
    with task_identity():
        loop.run(grid, arrays, rounds, timeout=5, callbacks=[records])


def asked(reports: Records) -> list[tuple[list[int], list[str]]]:
    rounds = [report for report in reports if report.server_round]
    return [([u.client for u in r.updates], sorted(r.failures)) for r in rounds]
