"""Taking replies as they arrive: the order changes nothing, and no message is held."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedmoe_app import SCHEMES, ModelState
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.compare.in_process import task_identity
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.collect import Collected, UpdateCollector
from fedmoe_app.wire.records import UpdateSpec, encode_update
from tests.aggregation.test_store import WANTED, measured, updates
from tests.toy import assert_same, fold_toy, toy_state

GIVEN = measured(updates(seed=9))
SPEC = replace(UpdateSpec.of(toy_state(), region_size=4), statistics=WANTED)


def message(client: int, node: int | None = None) -> Message:
    asked = Message(RecordDict(), 10 + client if node is None else node, "train")
    return Message(encode_update(GIVEN[client]), reply_to=asked)


def taken(order: tuple[int, ...], spool: Spool | None = None) -> Collected:
    collector = UpdateCollector(SPEC, ClientRegistry(seed=0), spool)
    with task_identity():
        for position, client in enumerate(order):
            is_copy = client in order[:position]
            collector.add(message(client, 90 + position if is_copy else None))
    return collector.finish()


@pytest.mark.parametrize("name", SCHEMES)
def test_the_order_of_arrival_changes_no_bit(name: str, tmp_path: Path) -> None:
    wanted: ModelState | None = None
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 23):
        spool = Spool(tmp_path, limit=100)  # other clients in memory, others in the file
        state = fold_toy(SCHEMES[name](), taken(order, spool).updates)
        spool.close()
        wanted = wanted or state
        assert_same(state, wanted)


def test_a_reply_that_was_taken_over_is_not_held_by_anybody(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=0)
    collector = UpdateCollector(SPEC, ClientRegistry(seed=0), spool)
    with task_identity():
        reply = message(0)
        arrays = [weakref.ref(array) for array in reply.content["arrays"].values()]
        collector.add(reply)
        del reply
    assert all(array() is None for array in arrays)


def test_copies_of_a_client_are_rejected_whichever_came_first() -> None:
    for order in ((0, 1, 0), (0, 0, 1), (1, 0, 0)):
        decoded = taken(order)
        assert [update.client for update in decoded.updates] == [1]
        copy = next(node for node in (90, 91, 92) if f"node {node}" in decoded.rejected)
        reason = f"reply rejected: 2 nodes have partition-id = 0 (10, {copy}); give each its own"
        assert decoded.rejected == {"node 10": reason, f"node {copy}": reason}
