"""Robust rules: by hand, with one and two members, and against a client that lies."""

from __future__ import annotations

import pytest
import torch

from fedmoe_app import Combination, Scheme, Together
from fedmoe_app.schemes.robust import CentredClip, MultiKrum, NearMost, Trimmed
from tests.schemes.parts_at_work import combined
from tests.toy import fold_toy, own_update

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
