"""Replies that are summed as they come: the same bits as if all had waited, and no disk."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from fedmoe_app import SCHEMES, ClientUpdate, ModelState, Scheme, Summed
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.aggregation.streaming import AtOnce, RunningSums, round_info
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.collect import Collected, UpdateCollector
from fedmoe_app.wire.records import UpdateSpec, encode_update
from tests.aggregation.test_store import WANTED, measured, updates
from tests.toy import assert_same, fold, plan_of, toy_state

GIVEN = measured(updates(seed=9))
HOLDERS = {client: 10 + client for client in range(5)}  # client -> node

IN_ORDER = tuple(range(5))
ORDERS = list(itertools.islice(itertools.permutations(range(5)), 0, 120, 17))
AVERAGING = ("fedavg", "fedprox", "fedmoe", "pflmoe", "hfedmoe")  # experts need not wait


class Server:
    """Takes the replies of five clients, of nodes that were known before."""

    def __init__(self, scheme: Scheme, spool: Spool, experts: bool = True, split: int = 0) -> None:
        self.scheme, self.spool = scheme, spool
        self.sums = RunningSums(plan_of(scheme).server, experts, toy_state())
        at_once = AtOnce(self.sums, HOLDERS, split, spool)
        spec = replace(UpdateSpec.of(toy_state(), region_size=4), statistics=WANTED)
        self.registry = ClientRegistry(seed=0)
        self.registry.clients = {node: client for client, node in HOLDERS.items()}
        self.collector = UpdateCollector(spec, self.registry, spool, HOLDERS, split, at_once)

    def reply(self, update: ClientUpdate, node: int | None = None) -> None:
        with task_identity():
            asked = Message(RecordDict(), HOLDERS[update.client] if node is None else node, "train")
            self.collector.add(Message(encode_update(update), reply_to=asked))

    def fold(self, decoded: Collected | None = None) -> ModelState:
        found = (decoded or self.collector.finish()).updates
        return fold(toy_state(), found, self.scheme, round_info(1, found), sums=self.sums)


class Nodes(InProcessGrid):
    """These nodes are connected."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes


def waited(scheme: Scheme, given: list[ClientUpdate]) -> ModelState:
    """The next state if no reply was summed before all were in."""
    return fold(toy_state(), given, scheme, round_info(1, given))


@pytest.mark.parametrize("experts", [True, False])
@pytest.mark.parametrize("limit", [0, 100, 10_000])
@pytest.mark.parametrize("name", SCHEMES)
def test_whatever_was_summed_at_once_the_bits_are_the_same(
    name: str, limit: int, experts: bool, tmp_path: Path
) -> None:
    scheme = SCHEMES[name]()
    wanted = waited(scheme, GIVEN)
    for order in ORDERS:
        server = Server(scheme, Spool(tmp_path, limit), experts)
        for client in order:
            server.reply(GIVEN[client])
        assert_same(server.fold(), wanted)
        assert all(server.sums.has_taken(client) for client in range(5))
        server.spool.close()


@pytest.mark.parametrize("name", SCHEMES)
def test_in_order_only_what_needs_all_clients_waits(name: str, tmp_path: Path) -> None:
    server = Server(SCHEMES[name](), Spool(tmp_path, limit=0))
    for client in IN_ORDER:
        server.reply(GIVEN[client])
    for update in server.collector.finish().updates:
        half = plan_of(SCHEMES[name]()).server
        at_once = {
            kind: isinstance(getattr(half, kind), Summed) and half.admit is None
            for kind in ("dense", "gates", "experts")
        }
        assert {kind: not getattr(update.changes, kind) for kind in at_once} == at_once
        assert name not in AVERAGING or not update.changes.experts


def test_after_a_client_that_does_not_answer_the_others_wait(tmp_path: Path) -> None:
    scheme = SCHEMES["fedmoe"]()
    server = Server(scheme, Spool(tmp_path, limit=0))
    for client in (4, 0, 1, 3):
        server.reply(GIVEN[client])
    assert [client for client in range(5) if server.sums.has_taken(client)] == [0, 1]
    assert_same(server.fold(), waited(scheme, [GIVEN[client] for client in (0, 1, 3, 4)]))


@pytest.mark.parametrize("late", [0, 1, 2, 3])
def test_a_node_with_the_number_of_a_known_one_is_rejected(late: int, tmp_path: Path) -> None:
    """Whether it comes before the known node or after it: its changes are in nothing."""
    scheme = SCHEMES["fedavg"]()
    server = Server(scheme, Spool(tmp_path, limit=0))
    foreign = measured(updates(seed=4))[2]
    for position, client in enumerate((0, 1, 2, 3, 4)):
        if position == late:
            server.reply(foreign, node=77)
        server.reply(GIVEN[client])
    decoded = server.collector.finish()
    assert decoded.rejected == {
        "node 77": "reply rejected: partition-id = 2 is that of node 12 since an earlier round; "
        "give each its own"
    }
    assert_same(server.fold(decoded), waited(scheme, GIVEN))
    assert server.registry.client(77) is None


def test_a_new_node_counts_where_the_known_one_is_gone(tmp_path: Path) -> None:
    """A client's machine was started anew and has another node id."""
    scheme = SCHEMES["fedavg"]()
    server = Server(scheme, Spool(tmp_path, limit=0))
    server.registry.connected(Nodes([77, *(HOLDERS[client] for client in (0, 1, 3, 4))]))
    server.reply(GIVEN[2], node=77)
    for client in (0, 1, 3, 4):
        server.reply(GIVEN[client])
    decoded = server.collector.finish()
    assert not decoded.rejected and not server.sums.has_taken(2)
    assert_same(server.fold(decoded), waited(scheme, GIVEN))


def test_another_split_than_in_earlier_rounds_is_in_nothing(tmp_path: Path) -> None:
    """Most clients have it, but the run began with another one."""
    scheme = SCHEMES["fedavg"]()
    server = Server(scheme, Spool(tmp_path, limit=0), split=5)
    splits = [5, 8, 8, 8, 5]
    for client, split in enumerate(splits):
        server.reply(with_split(GIVEN[client], split))
    decoded = server.collector.finish()
    assert sorted(decoded.rejected) == ["client 1", "client 2", "client 3"]
    assert "num-partitions = 8, but earlier rounds had 5" in decoded.rejected["client 1"]
    assert_same(server.fold(decoded), waited(scheme, [GIVEN[0], GIVEN[4]]))


def with_split(update: ClientUpdate, split: int) -> ClientUpdate:
    return replace(update, num_partitions=split)


def test_an_update_whose_rest_cannot_be_stored_is_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = SCHEMES["fcmoe"]()
    server = Server(scheme, Spool(tmp_path, limit=0))
    server.reply(GIVEN[0])

    def full(tensor: torch.Tensor) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(server.spool, "_append", full)
        server.reply(GIVEN[1])
    for client in (2, 3, 4):
        server.reply(GIVEN[client])
    decoded = server.collector.finish()
    assert list(decoded.rejected) == ["client 1"]
    assert_same(server.fold(decoded), waited(scheme, [GIVEN[i] for i in (0, 2, 3, 4)]))


def test_a_damaged_reply_leaves_the_sums_alone(tmp_path: Path) -> None:
    scheme = SCHEMES["fedavg"]()
    server = Server(scheme, Spool(tmp_path, limit=0))
    bad = measured(updates(seed=9))[1]
    bad.changes.dense["head.weight"][0] = torch.nan
    for update in (GIVEN[0], bad, *GIVEN[2:]):
        server.reply(update)
    decoded = server.collector.finish()
    assert list(decoded.rejected) == ["client 1"]
    assert_same(server.fold(decoded), waited(scheme, [GIVEN[i] for i in (0, 2, 3, 4)]))


def test_a_node_that_answers_twice_counts_once(tmp_path: Path) -> None:
    server = Server(SCHEMES["fedavg"](), Spool(tmp_path, limit=0))
    for client in (0, 0, 1, 2, 3, 4):
        server.reply(GIVEN[client])
    decoded = server.collector.finish()
    assert decoded.rejected == {"client 0": "reply rejected: the node has answered before"}
    assert_same(server.fold(decoded), waited(server.scheme, GIVEN))
