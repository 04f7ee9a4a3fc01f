"""Nodes whose policies refuse: counted apart, whatever they refuse, and once a round."""

from __future__ import annotations

from flwr.app import ArrayRecord

from fedmoe_app import client_app
from fedmoe_app.compare.in_process import InProcessGrid
from fedmoe_app.server.busy import BusyNodes
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.other_runs import OtherRuns
from fedmoe_app.server.round import EVALUATION, Round

WHY = "this node's policy does not allow scheme = 'fcmoe'"


def test_who_refuses_to_train_or_to_score_is_counted_once() -> None:
    registry = ClientRegistry()
    others = OtherRuns(0.0, registry, BusyNodes(lambda node, content: None))
    grid = InProcessGrid(client_app.app, {}, [])
    now = Round(1, grid, ArrayRecord(), 1.0, registry, others)
    now.collected({"bounds": 2})
    now.fail("client 3", WHY)
    now.fail(f"client 3{EVALUATION}", WHY)
    now.fail(f"client 4{EVALUATION}", WHY)
    now.fail("client 5", "no reply within 60 s")
    assert now.record("accuracy").rejected == {"bounds": 2, "refused": 2}
