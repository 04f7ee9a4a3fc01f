"""Masked sums without a server: exact whoever is gone; what would tell of a client is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fedmoe_app.privacy.member import Keys, Member, SumError, threshold, unmasked
from fedmoe_app.privacy.ring import (
    from_ring,
    key_stream,
    numbers_from_ring,
    numbers_to_ring,
    to_ring,
    value_bits,
    weight_of,
)
from fedmoe_app.privacy.sparse import about_layout, values_vector

NODES = (7, 2**63 + 5, 31, 4, 99)  # Flower's ids have 64 bits
CONTEXT = "run 3"


def begun(nodes: tuple[int, ...] = NODES) -> tuple[dict[int, Member], dict[int, Keys]]:
    members = {node: Member.begin(node, CONTEXT) for node in nodes}
    return members, {node: member.public() for node, member in members.items()}


def shared(members: dict[int, Member], keys: dict[int, Keys]) -> dict[int, dict[int, bytes]]:
    """What each node is sent by the others."""
    sent = {node: member.share(keys) for node, member in members.items()}
    return {node: {n: s[node] for n, s in sent.items() if node in s} for node in members}


def vectors(dtype: type = np.uint32) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    return {node: rng.integers(0, top, 1000, dtype=dtype, endpoint=True) for node in NODES}


def summed(
    members: dict[int, Member],
    keys: dict[int, Keys],
    box: dict[int, dict[int, bytes]],
    own: dict[int, np.ndarray],
    alive: list[int],
    gone: list[int],
    number: int,
    silent: int = 0,
) -> np.ndarray:
    """One sum; the last ``silent`` of those alive send no shares afterwards."""
    total = np.zeros_like(own[alive[0]])
    for node in alive:
        total = total + members[node].masked(own[node], [*alive, *gone], number)
    answers = []
    for node in alive[: len(alive) - silent]:
        if number == 0:
            members[node].take_shares(box[node])
        members[node] = Member.load(members[node].dump())  # the process ends between messages
        answers.append(members[node].unmask(alive, gone, number))
    return unmasked(total, keys, answers, alive, gone, CONTEXT, number)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize(("num_gone", "silent"), [(0, 0), (1, 0), (0, 1)])
def test_the_sum_is_exact_whoever_is_gone(num_gone: int, silent: int, dtype: type) -> None:
    members, keys = begun()
    box, own = shared(members, keys), vectors(dtype)
    alive, gone = list(NODES[num_gone:]), list(NODES[:num_gone])
    found = summed(members, keys, box, own, alive, gone, 0, silent)
    assert found.dtype == dtype
    assert np.array_equal(found, sum(own[node] for node in alive))


def test_a_client_that_goes_between_the_two_sums_is_out_of_the_second_only() -> None:
    members, keys = begun()
    box, own = shared(members, keys), vectors()
    first = summed(members, keys, box, own, list(NODES), [], 0)
    assert np.array_equal(first, sum(own.values()))
    second = summed(members, keys, box, own, list(NODES[1:]), [NODES[0]], 1)
    assert np.array_equal(second, sum(own[node] for node in NODES[1:]))


def test_one_masked_vector_looks_like_noise_and_each_sum_has_its_own_masks() -> None:
    members, keys = begun()
    box = shared(members, keys)
    zeros = {node: np.zeros(20_000, np.uint32) for node in NODES}
    member = members[7]
    first = member.masked(zeros[7], NODES, 0)
    # Bits are even: 32 of them over 20,000 values.
    share = np.unpackbits(first.view(np.uint8)).mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(32 * 20_000)
    member.take_shares(box[7])
    member.unmask(NODES, [], 0)
    assert not np.array_equal(first, member.masked(zeros[7], NODES, 1))


def test_clients_that_are_asked_for_other_tensors_give_no_sum() -> None:
    """Else the names that nobody has, asked of all but one, would leave that one's changes."""
    members, keys = begun()
    box, nothing = shared(members, keys), np.zeros(3, np.uint32)
    summed(members, keys, box, dict.fromkeys(NODES, nothing), list(NODES), [], 0)
    real, unknown = [("expert", 3)], [("nothing", 3)]
    changes = {"expert": np.full(3, 0.25, np.float32)}
    total, grid = nothing, (1.0, value_bits(len(NODES)))
    for node in NODES:
        layout = real if node == 7 else unknown
        vector = values_vector(changes, layout, 1, grid, (0,))
        total = total + members[node].masked(vector, NODES, 1, about_layout(layout))
    answers = [members[node].unmask(NODES, [], 1) for node in NODES]
    for layout in (real, unknown):
        about = about_layout(layout)
        found = unmasked(total, keys, answers, NODES, [], CONTEXT, 1, about)
        assert np.abs(from_ring(found, *grid) - 0.25).max() > 1e-3


def test_keys_of_one_sum_do_not_open_the_other() -> None:
    """The key that is told of a client that went in the second sum is not that of the first."""
    members, _ = begun()
    scalars = members[7].scalars
    assert len(set(scalars)) == 3
    assert len(set(members[7].seeds)) == 2


def ready() -> tuple[Member, dict[int, dict[int, bytes]]]:
    members, keys = begun()
    box = shared(members, keys)
    member = members[7]
    member.masked(np.zeros(3, np.uint32), NODES, 0)
    member.take_shares(box[7])
    return member, box


@pytest.mark.parametrize(
    ("alive", "gone", "message"),
    [
        (NODES, (31,), "both alive and gone"),
        (NODES[:4], (), "not those who sent"),
        ((*NODES, 12), (), "not those who sent"),
        (NODES[1:], (7,), "not those who sent"),
        (NODES[:3], NODES[3:], "3 of 5 alive: at least 4"),
    ],
)
def test_shares_that_would_tell_one_client_are_not_given_out(
    alive: tuple[int, ...], gone: tuple[int, ...], message: str
) -> None:
    member, _ = ready()
    with pytest.raises(SumError, match=message):
        member.unmask(alive, gone, 0)


def test_shares_are_given_out_once() -> None:
    member, _ = ready()
    with pytest.raises(SumError, match="in their order"):
        member.unmask(NODES, (), 1)
    member.unmask(NODES, (), 0)
    for alive, gone in ((NODES, ()), (NODES[:4], NODES[4:])):
        with pytest.raises(SumError, match="once a sum"):
            member.unmask(alive, gone, 0)
    with pytest.raises(SumError, match="one a round"):
        member.masked(np.zeros(3, np.uint32), NODES, 0)
    with pytest.raises(SumError, match="whose vectors came"):
        member.masked(np.zeros(3, np.uint32), NODES[:4], 1)


def test_shares_that_are_not_for_this_client_are_refused() -> None:
    member, box = ready()
    with pytest.raises(SumError, match="shares of node"):
        member.take_shares(box[31] | {31: box[4][31]})


def test_keys_that_are_not_everybodys_own_are_refused() -> None:
    members, keys = begun()
    with pytest.raises(SumError, match="own keys"):
        members[7].share(keys | {7: keys[31]})
    with pytest.raises(SumError, match="one key"):
        members[7].share(keys | {4: keys[31]})
    with pytest.raises(SumError, match="over 2 clients"):
        members[7].share({node: keys[node] for node in (7, 4)})
    members[7].share(keys)
    with pytest.raises(SumError, match="too few"):
        members[7].masked(np.zeros(3, np.uint32), NODES[:3], 0)


def test_too_few_answers_unmask_nothing() -> None:
    _, keys = begun()
    with pytest.raises(SumError, match="3 of 4 answers"):
        unmasked(np.zeros(3, np.uint32), keys, [{}, {}, {}], NODES, (), CONTEXT, 0)
    assert threshold(5) == 4
    assert threshold(3) == 3
    assert threshold(10) == 7


def test_key_streams_differ_by_key_and_purpose() -> None:
    like = np.zeros(8, np.uint32)
    streams = [key_stream(k, c, like) for k in (b"a", b"b") for c in (b"1", b"2")]
    assert len({stream.tobytes() for stream in streams}) == 4
    assert np.array_equal(streams[0], key_stream(b"a", b"1", like))


def test_values_survive_the_grid_to_its_step_and_without_bias() -> None:
    rng = np.random.default_rng(1)
    bits = value_bits(10)
    weights = [1, 7, 40]
    own = [rng.normal(0, 0.1, 20_000) for _ in weights]
    total = sum(to_ring(x, 2.0, w, bits, (w, 5)) for x, w in zip(own, weights, strict=True))
    wanted = sum(w * np.clip(x, -2, 2) for x, w in zip(own, weights, strict=True))
    error = from_ring(np.asarray(total), 2.0, bits) - wanted
    step = 2.0 / 2**bits
    assert np.abs(error).max() < 3 * step
    assert abs(error.mean()) < 5 * step / np.sqrt(20_000)


def test_the_largest_sum_does_not_wrap() -> None:
    for clients in (3, 10, 333):
        bits = value_bits(clients)
        for value in (1.0, -1.0):
            one = to_ring(np.array([value * 5]), 1.0, 40, bits, (0,))
            found = from_ring(np.asarray(one * np.uint32(clients)), 1.0, bits)
            assert found[0] == pytest.approx(40 * clients * value, rel=1e-6)
    with pytest.raises(ValueError, match="fewer in a round"):
        value_bits(10**6)


def test_weights_are_units_of_examples() -> None:
    assert [weight_of(n, 10) for n in (1, 10, 11, 400, 10**6)] == [1, 1, 2, 40, 40]


def test_numbers_survive_with_26_binary_places() -> None:
    numbers = np.array([0.0, 1e9 + 0.5, -3.25, 1e-5])
    total = numbers_to_ring(numbers, 3) + numbers_to_ring(-2 * numbers, 3)
    assert numbers_from_ring(total) == pytest.approx(-numbers, abs=2**-26)
    with pytest.raises(ValueError, match="at most"):
        numbers_to_ring(np.array([1e12]), 3)
