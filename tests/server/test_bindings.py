"""Which node speaks for which client: claims, contests, nodes that are gone and come back."""

from __future__ import annotations

from fedmoe_app.config.names import MAX_GIVEN
from fedmoe_app.server.bindings import Bindings


def bound(*pairs: tuple[int, int]) -> Bindings:
    """Nodes that are bound to clients, all of them connected."""
    bindings = Bindings()
    for node, client in pairs:
        assert bindings.claim(node, client) is None
        assert bindings.settle() == ({node: client}, {})
    bindings.see([node for node, _ in pairs])
    return bindings


def test_the_first_good_claim_binds() -> None:
    bindings = Bindings()
    assert bindings.client(10) is None
    assert bindings.claim(10, 0) is None
    assert bindings.client(10) is None  # until the round's claims are settled together
    assert bindings.settle() == ({10: 0}, {})
    assert bindings.client(10) == 0
    assert bindings.claim(10, 0) is None
    assert bindings.settle() == ({}, {})


def test_a_taken_number_and_another_number_are_refused() -> None:
    bindings = bound((10, 0), (11, 1))
    assert "partition-id = 0 is that of node 10" in (bindings.claim(12, 0) or "")
    assert "it is client 1 in this run and says client 0" in (bindings.claim(11, 0) or "")
    assert "it is client 1 in this run and says client 5" in (bindings.claim(11, 5) or "")
    assert bindings.settle() == ({}, {})
    assert bindings.clients == {10: 0, 11: 1}


def test_the_order_of_claims_decides_nothing() -> None:
    for order in ((10, 11), (11, 10)):
        bindings = Bindings()
        bindings.see([10, 11])
        for node in order:
            assert bindings.claim(node, 0) is None
        new, refused = bindings.settle()
        assert new == {}
        assert refused.keys() == {10, 11}
        assert bindings.client(10) is bindings.client(11) is None
        # It stays so, whoever speaks alone.
        assert "2 nodes have partition-id = 0 (10, 11)" in (bindings.claim(10, 0) or "")


def test_a_contest_ends_when_one_is_gone_or_has_another_number() -> None:
    for leaves in (True, False):
        bindings = Bindings()
        bindings.see([10, 11])
        assert bindings.claim(10, 0) is bindings.claim(11, 0) is None
        bindings.settle()
        if leaves:
            bindings.see([10])
        else:
            assert bindings.claim(11, 1) is None
            bindings.settle()
        assert bindings.claim(10, 0) is None
        assert bindings.settle()[0] == {10: 0}


def test_work_counts_before_words() -> None:
    bindings = Bindings()
    bindings.see([10, 11, 12])
    assert bindings.claim(11, 0, worked=False) is None
    assert bindings.claim(12, 0, worked=False) is None
    assert bindings.settle()[1].keys() == {11, 12}
    assert bindings.claim(12, 0, worked=False) is not None
    assert bindings.claim(10, 0) is None
    assert bindings.settle() == ({10: 0}, {})
    # In one round, too.
    bindings = Bindings()
    assert bindings.claim(11, 0, worked=False) is bindings.claim(10, 0) is None
    new, refused = bindings.settle()
    assert new == {10: 0}
    assert refused.keys() == {11}


def test_who_says_two_numbers_at_once_is_refused_the_second() -> None:
    bindings = Bindings()
    assert bindings.claim(10, 0) is None
    assert bindings.claim(10, 1) == "it says client 1 and client 0"
    assert bindings.settle() == ({10: 0}, {})


def test_a_node_that_is_gone_leaves_its_number_and_has_it_again_when_it_is_back() -> None:
    bindings = bound((10, 0), (11, 1))
    bindings.see([11, 12])
    assert bindings.client(10) == 0  # nobody else has it yet
    assert bindings.is_free(0) and not bindings.is_free(1)
    assert bindings.claim(12, 0) is None
    assert bindings.settle()[0] == {12: 0}
    assert (bindings.client(12), bindings.client(10)) == (0, None)
    bindings.see([10, 11, 12])
    assert (bindings.client(12), bindings.client(10)) == (None, 0)
    assert "is that of node 10" in (bindings.claim(12, 0) or "")
    # A node without a number may have another one, and so may one whose number went on.
    assert bindings.claim(12, 7) is None
    bindings.settle()
    assert bindings.clients == {10: 0, 11: 1, 12: 7}


def test_two_machines_that_change_places_are_not_locked_out() -> None:
    bindings = bound((10, 0))
    bindings.see([11])
    bindings.claim(11, 0)
    bindings.settle()
    bindings.see([10, 11])  # with its key, the first one is back under its id, as client 4
    assert bindings.claim(10, 4) is None
    bindings.settle()
    assert (bindings.client(10), bindings.client(11)) == (4, 0)


def test_order_is_kept_in_what_a_checkpoint_holds() -> None:
    bindings = bound((12, 0), (11, 1))
    bindings.see([10])
    bindings.claim(10, 0)
    bindings.settle()
    other = Bindings()
    other.load(bindings.clients)
    other.see([10, 11, 12])
    assert (other.client(12), other.client(10)) == (0, None)


def test_nobody_takes_another_nodes_id_for_a_number() -> None:
    bindings = Bindings()
    node = 2**63 + 5
    assert bindings.claim(node, node) is None
    assert f"a number of {MAX_GIVEN} or more" in (bindings.claim(11, node) or "")
    assert f"a number of {MAX_GIVEN} or more" in (bindings.claim(11, MAX_GIVEN) or "")
    assert bindings.settle()[0] == {node: node}


def test_a_list_is_all_there_is() -> None:
    bindings = bound((10, 0))
    bindings.load({11: 0, 12: 1}, is_list=True)
    bindings.see([11, 12])
    assert bindings.client(10) is None
    assert bindings.claim(11, 0) is None
    assert bindings.claim(12, 0) == "it says client 0, but the client list has it as client 1"
    assert bindings.claim(10, 0) == "it says client 0, but the client list has it as no client"
    assert bindings.settle() == ({}, {})
