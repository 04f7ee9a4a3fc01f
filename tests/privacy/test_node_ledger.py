"""The node's ledger: it adds up over runs, whatever their noise, and refuses in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import RefusedError
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.example_level import ExampleLevel, added
from fedmoe_app.privacy.node_ledger import NodeLedger, data_set

ONE = ExampleLevel(clip=1.0, noise=1.0, rate=0.1, steps=5, rounds=4, delta=1e-5)
OTHER = ExampleLevel(clip=3.0, noise=2.0, rate=0.3, steps=2, rounds=1, delta=1e-5)


def test_two_rounds_are_what_the_accountant_says_of_their_steps(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path / "node")
    assert ledger.epsilon("rows", 1e-5) == 0
    assert ledger.spend("rows", ONE.spent()) == pytest.approx(epsilon(0.1, 1.0, 5, 1e-5))
    assert ledger.spend("rows", ONE.spent()) == pytest.approx(epsilon(0.1, 1.0, 10, 1e-5))
    # The same again for a new process; another data set has spent nothing.
    again = NodeLedger(tmp_path / "node")
    assert again.epsilon("rows", 1e-5) == pytest.approx(epsilon(0.1, 1.0, 10, 1e-5))
    assert again.epsilon("others", 1e-5) == 0
    file = tmp_path / "node" / "privacy.json"
    assert file.stat().st_mode & 0o777 == 0o600


def test_runs_of_different_noise_add_up_by_order(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    first, both = ledger.spend("rows", ONE.spent()), ledger.spend("rows", OTHER.spent())
    alone = epsilon(0.3, 2.0, 2, 1e-5)
    assert max(first, alone) < both < first + alone  # less than the sum of the two ε
    assert ledger.spent("rows") == pytest.approx(added(ONE.spent(), OTHER.spent()))


def test_what_would_pass_the_limit_is_refused_and_not_spent(tmp_path: Path) -> None:
    ledger, limit = NodeLedger(tmp_path), epsilon(0.1, 1.0, 12, 1e-5)
    ledger.spend("rows", ONE.spent(), limit=limit)
    ledger.spend("rows", ONE.spent(), limit=limit)
    before = (tmp_path / "privacy.json").read_bytes()
    with pytest.raises(RefusedError, match=r"^this node's policy does not allow .* epsilon") as why:
        ledger.spend("rows", ONE.spent(), limit=limit)
    assert (tmp_path / "privacy.json").read_bytes() == before
    assert not any(
        character.isdigit() for character in str(why.value)
    )  # none of the node's figures


def test_a_run_that_would_not_fit_as_a_whole_does_not_begin(tmp_path: Path) -> None:
    ledger, limit = NodeLedger(tmp_path), epsilon(0.1, 1.0, 12, 1e-5)
    with pytest.raises(RefusedError):
        ledger.spend("rows", ONE.spent(), ONE.spent(ONE.rounds - 1), limit)
    assert ledger.epsilon("rows", 1e-5) == 0


@pytest.mark.parametrize("text", ["", "{}", '{"orders": [2], "data_sets": {}}', "[1]"])
def test_a_file_that_cannot_be_read_stops_the_round(tmp_path: Path, text: str) -> None:
    (tmp_path / "privacy.json").write_text(text)
    with pytest.raises(ConfigError, match="nobody knows what runs have spent"):
        NodeLedger(tmp_path).spend("rows", ONE.spent())
    assert (tmp_path / "privacy.json").read_text() == text


def test_a_data_set_is_the_file_that_links_lead_to(tmp_path: Path) -> None:
    rows, link = tmp_path / "rows.jsonl", tmp_path / "link.jsonl"
    rows.write_text("{}")
    link.symlink_to(rows)
    by_name = [data_set(Node(0, 0, None, str(path))) for path in (rows, link)]
    assert by_name == [str(rows.resolve())] * 2
    assert data_set(Node(1, 1, 4, None)) != data_set(Node(2, 2, 4, None))
