"""The message that ends a run on a node: it drops the client's files of that run, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedmoe_app.client.store import RoundStore
from fedmoe_app.client_app import app
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.wire.records import decode_client

RUN, OTHER = "0123456789abcdef", "fedcba9876543210"


def forget(run_key: str) -> Message:
    """Ask the node of client 1 to forget a run."""
    grid = InProcessGrid(app, {}, [{"partition-id": 1, "num-partitions": 3}])
    content = RecordDict({"task": ConfigRecord({"run-key": run_key})})
    with task_identity():
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(content, node, "query.forget")])
    return reply


@pytest.fixture(autouse=True)
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of two clients in one run, and of one in another."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    for run, client in ((RUN, 1), (RUN, 2), (OTHER, 1)):
        RoundStore(run, client).save(1, {"a": torch.ones(1)})
    return tmp_path / "clients"


def left(clients: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(clients)) for path in clients.rglob("round-1*"))


def test_a_node_forgets_its_client_of_this_run(clients: Path) -> None:
    reply = forget(RUN)
    assert decode_client(reply.content) == 1
    assert left(clients) == [f"{RUN}/client-2", f"{OTHER}/client-1"]


@pytest.mark.parametrize("key", ["../../clients", ".", f"../{OTHER}", f"{OTHER}/", ""])
def test_a_key_that_is_a_path_is_refused_and_nothing_is_dropped(clients: Path, key: str) -> None:
    reply = forget(key)
    assert reply.has_error()
    assert "must be 8 to 64 hexadecimal digits" in reply.error.reason
    assert len(left(clients)) == 3
