"""Nodes behind a proxy that passes on their own API alone: they work, and can start no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.deploy.certificates import create
from fedmoe_app.flower.release import speaks_http
from fedmoe_app.launch.connections import LaunchError, write_connection
from fedmoe_app.launch.flower import register_node
from fedmoe_app.launch.processes import free_port
from tests.end_to_end.conftest import echo_app
from tests.end_to_end.processes import (
    CONNECTED,
    WARM_SUPERNODE,
    Deployment,
    Keys,
    deployment,
    numbered,
    start_supernode,
    wait_for_line,
)
from tests.newest_flower.fleet_proxy import fleet_proxy

pytestmark = [
    pytest.mark.newest_flower,
    pytest.mark.skipif(not speaks_http(), reason="nodes have a port of their own"),
]

__all__ = ["echo_app"]  # a fixture


def start_node(flower: Deployment, address: str, keys: Path, index: int) -> None:
    path = flower.folder / f"node-{index}.log"
    options = [*Keys(keys).supernode_options(index), "--port", str(free_port())]
    with path.open("w") as log:
        node = start_supernode(
            flower.group, address, options, numbered(2)(index), log, supernode=WARM_SUPERNODE
        )
    wait_for_line(node, path, CONNECTED)


def test_nodes_need_nothing_but_their_own_api(echo_app: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    create(keys, ["localhost"], num_nodes=2, days=1)
    with (
        deployment(tmp_path, 0, keys=Keys(keys)) as flower,
        fleet_proxy(free_port(), flower.connection.address, keys) as address,
    ):
        for index in range(2):
            start_node(flower, address, keys, index)
        overrides = {"num-server-rounds": 2, "min-clients": 2, "output-dir": str(tmp_path)}
        outcome = flower.run(echo_app, overrides | {"run-name": "one"})
        assert outcome.completed, (outcome, flower.lines[-20:])
        outside = write_connection(tmp_path / "outside", "lab", address, keys / "ca.crt")
        with pytest.raises(LaunchError):
            register_node(outside, keys / "node-0.pub", "again")
    flower.assert_nothing_left()
    assert [len(line["clients"]) for line in read_metrics(tmp_path / "one")] == [0, 2, 2]
