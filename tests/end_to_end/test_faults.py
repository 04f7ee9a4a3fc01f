"""Faults that a run survives: real processes over gRPC, ended and stopped by pid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedmoe_app import read_status
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.server.resume import find_checkpoint
from tests.end_to_end.faults import PATIENCE, Lab, kill_tree
from tests.end_to_end.proxy import Proxy

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        lab.start_superlink()
        yield lab


def start_nodes(lab: Lab, *clients: int) -> None:
    for client in clients:
        lab.start_node(client)


def test_a_node_killed_while_it_trains_is_left_out(lab: Lab) -> None:
    """The round waits until Flower notices (a minute), not until its time is up."""
    start_nodes(lab, 0, 1, 2)
    lab.tell(2, "wait")
    run = lab.run(**{"num-server-rounds": 2, "min-clients": 2, "round-timeout": 3000.0})
    lab.wait_until_training(2, 1)
    kill_tree(lab.nodes[2])
    lines = lab.finish(run)
    assert lab.clients() == [[0, 1], [0, 1]]
    assert [len(line["failures"]) for line in lines] == [0, 1, 0]
    assert "unavailable" in lines[1]["failures"][0]["reason"].lower()
    assert lines[1]["seconds"]["train"] < 300


def test_a_node_that_joins_late_trains_from_the_next_round_on(lab: Lab) -> None:
    start_nodes(lab, 0, 1)
    lab.tell(0, "wait")
    run = lab.run(**{"num-server-rounds": 2, "min-clients": 2})
    lab.wait_until_training(0, 1)
    lab.start_node(2)
    lab.release(0)
    lab.finish(run)
    assert lab.clients() == [[0, 1], [0, 1, 2]]


def test_a_late_reply_is_dropped_and_the_node_is_used_again(lab: Lab) -> None:
    start_nodes(lab, 0, 1, 2)
    lab.tell(1, "wait")
    lab.tell(0, "wait-in-2")
    run = lab.run(**{"num-server-rounds": 3, "min-clients": 2, "round-timeout": 60.0})
    lab.wait_until_training(0, 2)  # client 1 has missed round 1
    lab.release(1)
    time.sleep(6)  # the late reply of round 1 reaches the SuperLink while round 2 goes on
    lab.release(0)
    lines = lab.finish(run)
    assert lab.clients() == [[0, 2], [0, 2], [0, 1, 2]]
    assert lines[1]["failures"][0]["reason"] == "no reply within 60 s"
    assert not lab.has_trained(1, 2)
    # Every folded change of round r is r: a reply of round 1 in round 2 or 3 would show.
    assert [line["loss"] for line in lines] == [0, 1, 1 + 2, 1 + 2 + 3]
    # Its client is not known yet, and nothing is learnt from what comes too late.
    assert sum(": late reply dropped" in line for line in lab.lines) == 1


def test_a_client_that_raises_is_left_out_of_the_round(lab: Lab) -> None:
    start_nodes(lab, 0, 1, 2)
    lab.tell(2, "raise")
    lab.tell(0, "wait")
    run = lab.run(**{"num-server-rounds": 2, "min-clients": 2})
    lab.wait_until_training(2, 1)
    time.sleep(2)
    lab.release(2)
    lab.release(0)
    lines = lab.finish(run)
    assert lab.clients() == [[0, 1], [0, 1, 2]]
    assert lines[1]["failures"] == [{"who": "client 2", "reason": "out of memory"}]


def test_a_network_cut_of_half_a_minute_costs_nothing_but_time(lab: Lab) -> None:
    with Proxy(lab.fleet_port) as proxy:
        start_nodes(lab, 0, 1)
        lab.start_node(2, proxy.port)
        lab.tell(2, "wait")
        run = lab.run(**{"num-server-rounds": 2, "min-clients": 2})
        lab.wait_until_training(2, 1)
        proxy.cut()
        lab.release(2)
        time.sleep(30)
        proxy.mend()
        lines = lab.finish(run)
    assert lab.clients() == [[0, 1, 2], [0, 1, 2]]
    assert [line["failures"] for line in lines] == [[], [], []]
    total = {c["client"]: c["total"] for c in lines[1]["seconds"]["clients"]}
    assert total[2] > 30 > 0


def test_a_killed_serverapp_is_resumed_where_it_was(lab: Lab) -> None:
    start_nodes(lab, 0, 1)
    lab.tell(0, "wait-in-2")
    run = lab.run(**{"num-server-rounds": 4, "min-clients": 2})
    lab.wait_until_training(0, 2)
    kill_tree(lab.serverapp())
    outcome = run.result(timeout=PATIENCE)
    assert not outcome.completed
    assert [line["round"] for line in lab.metrics()] == [0, 1]
    assert read_status(lab.results)["state"] == "stale"
    lab.release(0)
    lines = lab.finish(lab.run(**{"num-server-rounds": 4, "resume": str(lab.results)}))
    assert lab.clients() == [[0, 1]] * 4
    assert [line["loss"] for line in lines] == [0, 1, 3, 6, 10]


def test_a_stopped_serverapp_leaves_a_folder_to_go_on_from(lab: Lab) -> None:
    """SIGTERM is what `flwr stop`, Ctrl-C in `fedmoe run` and systemd end in."""
    start_nodes(lab, 0, 1)
    lab.tell(0, "wait-in-2")
    run = lab.run(**{"num-server-rounds": 4, "min-clients": 2})
    lab.wait_until_training(0, 2)
    lab.serverapp().terminate()
    assert not run.result(timeout=PATIENCE).completed
    assert read_status(lab.results)["state"] == "interrupted"
    assert find_checkpoint(lab.results).snapshot.server_round == 1


def test_a_run_that_a_restarted_superlink_ended_is_resumed(lab: Lab) -> None:
    """Flower 1.39 keeps nodes and runs in its database, but a ServerApp ends with its SuperLink."""
    start_nodes(lab, 0, 1)
    lab.tell(0, "wait-in-2")
    run = lab.run(**{"num-server-rounds": 3, "min-clients": 2})
    lab.wait_until_training(0, 2)
    assert lab.superlink is not None
    kill_tree(lab.superlink)
    lab.start_superlink()
    with suppress(LaunchError):  # `flwr run --stream` may lose its connection
        assert not run.result(timeout=PATIENCE).completed
    lab.release(0)
    lines = lab.finish(lab.run(**{"num-server-rounds": 3, "resume": str(lab.results)}))
    assert [line["loss"] for line in lines] == [0, 1, 3, 6]
    assert lab.clients() == [[0, 1]] * 3
