"""Robust rules: by hand, with one and two members, and against a client that lies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedmoe_app import (
    SCHEMES,
    Admit,
    Combination,
    FedAvg,
    Mean,
    ModelShape,
    ModelState,
    Scheme,
    Server,
    SharedUpdates,
    Together,
)
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.parts import Client, Start
from fedmoe_app.schemes.robust import (
    CentredClip,
    FLTrust,
    MultiKrum,
    NearMost,
    Trimmed,
    geometric_median,
    nearest,
)
from tests.schemes.parts_at_work import combined
from tests.toy import (
    assert_same,
    diagnose_toy,
    fold,
    fold_toy,
    numbers,
    own_update,
    toy_state,
    toy_update,
)

RULES: dict[str, Together] = {
    "median": Trimmed(0.5),
    "trimmed": Trimmed(0.34),
    "krum": NearMost(bad=1),
    "clip": CentredClip(),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def test_median_and_trimmed_mean_by_hand() -> None:
    clients = [[1.0, 50.0], [2.0, -1.0], [3.0, 1.0], [9.0, 0.0]]
    assert combined(Trimmed(0.5), *clients).tolist() == [2.5, 0.5]  # of the two middle ones
    assert combined(Trimmed(0.5), *clients[:3]).tolist() == [2.0, 1.0]
    assert combined(Trimmed(0.25), *clients).tolist() == [2.5, 0.5]
    assert combined(Trimmed(0.2), *clients).tolist() == [3.75, 12.5]  # ⌊0.8⌋ = 0: the mean


def test_krum_keeps_those_that_are_near_each_other() -> None:
    # 5 members, f = 1: the sum of the 2 nearest squared distances is 0.05, 0.02, 0.05, 0.13, ...
    clients = [[1.0], [1.1], [1.2], [1.4], [50.0]]
    assert combined(NearMost(bad=1), *clients).tolist() == pytest.approx([1.175])
    assert combined(NearMost(bad=1, keep=1), *clients).tolist() == pytest.approx([1.1])


def test_clipping_by_hand() -> None:
    # Centre 1 (median); distances 1, 0, 99; r = their median, 1: (−1 + 0 + 1)/3.
    found = combined(CentredClip(radius=1.0, iterations=1), [0.0], [1.0], [100.0])
    assert found.tolist() == [1.0]
    # r = 2: (−1 + 0 + 2)/3
    wide = combined(CentredClip(radius=2.0, iterations=1), [0.0], [1.0], [100.0])
    assert wide.tolist() == pytest.approx([4 / 3])


@every_rule
def test_one_member_gives_its_change_and_two_their_mean(rule: Together) -> None:
    assert combined(rule, [3.0, -1.0]).tolist() == [3.0, -1.0]
    assert combined(rule, [3.0, -1.0], [5.0, 2.0]).tolist() == [4.0, 0.5]


@every_rule
def test_equal_changes_give_that_change(rule: Together) -> None:
    same = [0.5, -2.0, 3.0]
    torch.testing.assert_close(combined(rule, *[same] * 5), torch.tensor(same))


@every_rule
@pytest.mark.parametrize("lie", [1e3, -1e3, 1e9])
def test_one_liar_of_six_does_not_carry_it_off(rule: Together, lie: float) -> None:
    honest = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)) * 0.1 + 1
    found = combined(rule, *honest.tolist(), [lie] * 8)
    assert float((found - honest.mean(dim=0)).norm()) < 1.0
    assert float((found - honest.mean(dim=0)).norm()) < abs(lie) / 100


@every_rule
def test_permuted_clients_change_nothing(rule: Together) -> None:
    clients = torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).tolist()
    torch.testing.assert_close(combined(rule, *clients), combined(rule, *reversed(clients)))


@pytest.mark.parametrize("scheme", [MultiKrum(bad=1), Combination(experts=MultiKrum(bad=1))])
def test_too_few_members_for_krum_are_told_once_a_round(
    scheme: Scheme, caplog: pytest.LogCaptureFixture
) -> None:
    everything = {(layer, e): [1.0, 1.0, 1.0] for layer in range(2) for e in range(3)}
    updates = [own_update(client, 1, everything) for client in range(5)]
    with caplog.at_level("WARNING", logger="fedmoe"):
        fold_toy(scheme, updates)
        assert not caplog.records  # 5 = 2·1 + 3
        fold_toy(scheme, [*updates[:4], own_update(4, 1, {(0, 0): [1.0, 1.0, 1.0]})])
    assert len(caplog.records) == 1
    assert "4 members in a block, and bad = 1 needs at least 2·bad + 3 = 5" in caplog.text


# -- decided by client ---------------------------------------------------------------------------

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]
BY_CLIENT = ("geometricmedian", "trustedclip", "krum")
by_client = pytest.mark.parametrize("name", BY_CLIENT)


def gram_of(*points: list[float]) -> torch.Tensor:
    rows = torch.tensor(points, dtype=torch.float64)
    return rows @ rows.T


def test_a_geometric_median_by_hand() -> None:
    # On a line it is the weighted median, 1; in an equilateral triangle the middle.
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    found = geometric_median(gram_of([0.0], [1.0], [100.0]), third, 200)
    assert float(found @ torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64)) == pytest.approx(
        1, abs=1e-3
    )
    middle = geometric_median(gram_of([0, 0], [1, 0], [0.5, 0.75**0.5]), third, 200)
    assert middle.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    heavy = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
    assert float(geometric_median(gram_of([0.0], [1.0], [3.0]), heavy, 200)[2]) > 0.99


def test_krum_by_hand() -> None:
    points = torch.tensor([1.0, 1.1, 1.2, 1.4, 50.0])
    distances = (points.unsqueeze(1) - points).square()
    assert sorted(nearest(distances, bad=1, keep=0).tolist()) == [0, 1, 2, 3]
    assert nearest(distances, bad=1, keep=1).tolist() == [1]


@by_client
def test_equal_clients_are_the_mean(name: str) -> None:
    updates = [toy_update(i, 10, 0.5, ALL) for i in range(5)]
    assert_same(fold_toy(SCHEMES[name](), updates), fold_toy(FedAvg(), updates), 1e-6)


@by_client
@pytest.mark.parametrize("lie", [-30.0, 1e3, -1e4])
def test_who_is_far_off_in_the_shared_parts_has_no_expert_either(name: str, lie: float) -> None:
    # Only two trained the first expert, one of which lies: a rule for the expert alone is helpless.
    honest = [toy_update(i, 10, 1 + i / 20, ALL[1:]) for i in range(5)]
    liar = toy_update(6, 10, lie, [(0, 0)])
    state = fold_toy(SCHEMES[name](), [*honest, toy_update(5, 10, 1.1, [(0, 0)]), liar])
    first = float(state.experts[0, 0]["down"]) - 1
    alone = float(fold_toy(SCHEMES["median"](), [*honest, liar]).experts[0, 0]["down"]) - 1
    assert alone == pytest.approx(lie)
    assert abs(first - 1.1) < 0.2 * abs(lie)
    assert abs(float(state.dense["head.weight"][0]) - 2.1) < 0.2


@by_client
def test_the_order_of_clients_changes_nothing(name: str) -> None:
    given = [toy_update(i, 10 + i, x, ALL) for i, x in enumerate((0.5, 0.7, -2.0, 0.6, 0.4, 0.55))]
    backwards = [*reversed(given)]
    scheme = SCHEMES[name]()
    assert_same(fold_toy(scheme, given), fold_toy(scheme, backwards), 1e-5)


def test_what_was_decided_is_among_the_diagnostics() -> None:
    given = [*(toy_update(i, 10, 1 + i / 20, ALL) for i in range(5)), toy_update(5, 10, -9, ALL)]
    told = diagnose_toy(SCHEMES["krum"](), given)
    assert told["admitted"].tolist() == [1, 1, 1, 1, 1, 0]


def test_shared_parts_are_told_apart_by_their_inner_products() -> None:
    seen: list[SharedUpdates] = []

    class Looks(Admit):
        def admit(self, shared: SharedUpdates) -> torch.Tensor:
            seen.append(shared)
            return torch.tensor([1.0, 0.5, 0.0])

    class Looking(Scheme):
        def server(self, model: ModelShape) -> Server:
            return Server(admit=Looks(), experts=Mean("members"))

    given = [toy_update(i, 10, float(i), ALL) for i in range(3)]
    state = fold_toy(Looking(), given)
    # 2 values of the head and 12 of the gates; experts are not shared.
    assert seen[0].gram.tolist() == [[0, 0, 0], [0, 14, 28], [0, 28, 56]]
    assert seen[0].distances[0].tolist() == [0, 14, 56]
    # (10·0 + 5·1)/15; the third is in nothing.
    assert float(state.dense["head.weight"][0]) == pytest.approx(1 + 1 / 3)
    assert float(state.experts[0, 0]["down"]) == pytest.approx(1 + 1 / 3)


# -- against the server's own training -----------------------------------------------------------

ROOT = toy_update(0, 1, 0.5, ALL).changes  # every one of the 14 shared values, and of the experts


def test_fltrust_by_hand() -> None:
    """cos = 1, 1/√2, 0 (cut from −1); lengths 2, √2/2 and 3 times the server's."""
    half = {name: t.clone() for name, t in toy_update(1, 1, 0.5, ALL).changes.named()}
    for tensor in half.values():
        tensor.view(-1)[: tensor.numel() // 2] = 0  # half of the values: 7 of the shared 14
    second = ModelState()
    for name, tensor in half.items():
        second.insert(name, tensor)
    updates = [
        toy_update(0, 1, 1.0, ALL),
        replace(toy_update(1, 10**6, 0.5, ALL), changes=second),
        toy_update(2, 1, -1.5, ALL),
    ]
    state = fold(toy_state(), updates, SCHEMES["fltrust"](), root=ROOT)
    # Δ_1 → 0.5, Δ_2 → √2·0.5 where it is not 0; weights 1 and 1/√2, whatever n_i says.
    whole = 1 + 2**-0.5
    first, last = state.dense["head.weight"].tolist()
    assert first == pytest.approx(1 + 0.5 / whole)
    assert last == pytest.approx(1 + (0.5 + 0.5) / whole)
    # Of the expert the first shrinks to 0.5, too; the second does not grow by √2.
    assert numbers(state, (0, 0))[0] == pytest.approx(1 + 0.5 / whole)
    assert numbers(state, (0, 0))[1] == pytest.approx(1 + (0.5 + 2**-0.5 * 0.5) / whole)


@pytest.mark.parametrize("lie", [-1e4, -1.0, -0.3])
def test_fltrust_leaves_out_one_of_ten_that_goes_the_other_way(lie: float) -> None:
    honest = [toy_update(i, 10, 0.4 + i / 50, ALL) for i in range(9)]
    given = [*honest, toy_update(9, 10**8, lie, ALL)]
    scheme = SCHEMES["fltrust"]()
    found = fold(toy_state(), given, scheme, root=ROOT)
    assert_same(found, fold(toy_state(), honest, scheme, root=ROOT), 1e-6)
    assert float(found.dense["head.weight"][0]) == pytest.approx(1.5, abs=1e-5)


def test_fltrust_where_nobody_goes_the_servers_way() -> None:
    with pytest.raises(PartError, match=r"LikeRoot\.admit: raised .*no client's change goes"):
        fold(toy_state(), [toy_update(i, 1, -1.0, ALL) for i in range(3)], FLTrust(), root=ROOT)


def test_a_change_of_nothing_is_no_division_by_zero() -> None:
    given = [toy_update(0, 1, 0.0, ALL), toy_update(1, 1, 1.0, ALL)]
    found = fold(toy_state(), given, FLTrust(), root=ROOT)
    assert float(found.dense["head.weight"][0]) == pytest.approx(1.5)


class OwnGates(Start):
    def keep(self, done: object) -> dict[str, torch.Tensor]:
        return {}

    def start(self, received: ModelState, kept: object) -> ModelState:
        return received


def test_private_gates_do_not_count() -> None:
    kinds: set[str] = set()

    class Looks(Admit):
        def admit(self, shared: SharedUpdates) -> torch.Tensor:
            kinds.update(block.kind for block in shared.blocks)
            return torch.ones(3)

    class Private(Scheme):
        def client(self, model: ModelShape) -> Client:
            return Client(start_gates=OwnGates())

        def server(self, model: ModelShape) -> Server:
            return Server(admit=Looks())

    fold_toy(Private(), [toy_update(i, 10, 1.0, ALL) for i in range(3)])
    assert kinds == {"dense"}


@pytest.mark.parametrize("returned", [[0.0, 0.0], [-1.0, 1.0], [1.0]])
def test_a_decision_that_cannot_be_used_names_its_part(returned: list[float]) -> None:
    @dataclass(frozen=True)
    class Odd(Admit):
        def admit(self, shared: SharedUpdates) -> torch.Tensor:
            return torch.tensor(returned)

    class Oddly(Scheme):
        def server(self, model: ModelShape) -> Server:
            return Server(admit=Odd())

    with pytest.raises(PartError, match=r"Odd\.admit: returned"):
        fold_toy(Oddly(), [toy_update(i, 10, 1.0, ALL) for i in range(2)])
