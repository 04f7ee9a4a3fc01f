"""`fedmoe node`: the digest of the app, whether a policy allows a run, what was asked of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

from fedmoe_app.cli import main
from fedmoe_app.launch.gate import digest_of, log_path, note
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.example_level import ExampleLevel
from fedmoe_app.privacy.node_ledger import NodeLedger
from tests.conftest import REPOSITORY, flat_config

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedmoe", "node", *arguments])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def test_a_policy_is_asked_before_a_run(node: Call, tmp_path: Path) -> None:
    digest = digest_of(build_fab_from_disk(REPOSITORY))
    assert node("digest") == (0, f"{digest}\n")
    policy = tmp_path / "policy.toml"
    policy.write_text(f'apps = ["{digest}"]\nschemes = ["fedavg"]\n')
    policy.chmod(0o600)
    assert node("check", "--policy", str(policy)) == (0, "allowed\n")
    code, said = node("check", "--policy", str(policy), "-c", 'scheme="fcmoe"')
    assert (code, said) == (1, "not allowed: scheme = 'fcmoe'\n")


def test_the_log_is_shown_whatever_stands_in_it(node: Call) -> None:
    assert "nothing was asked of this node" in node("log")[1]
    note(7, f"sha256:{'0' * 64}", flat_config(), "")
    note(8, f"sha256:{'1' * 64}", {"scheme": "\x1b[31m[red]"}, "this node's policy ...")
    with log_path().open("a") as file:
        file.write('{"time": "2026')  # the process was killed
    code, said = node("log", "--config")
    assert code == 0
    lines = said.splitlines()
    assert lines[0].endswith("taken")
    assert any("run 8" in line and "refused: this node's policy" in line for line in lines)
    assert "\x1b" not in said
    assert lines[-1].startswith("a line that cannot be read")


ONE = ExampleLevel(clip=1.0, noise=1.0, rate=0.1, steps=5, rounds=4, delta=1e-5)


def test_the_ledger_is_shown_by_data_set(node: Call, tmp_path: Path) -> None:
    """Two runs of two rounds are what the accountant says of twenty steps."""
    assert "no run has spent" in node("ledger")[1]
    for run in ("a", "a", "b", "b"):
        NodeLedger().spend("/data/rows.jsonl", ONE.spent(), run=run)
    NodeLedger().spend("what runs name, client 3", ONE.spent(), run="c")
    spent = epsilon(0.1, 1.0, 20, 1e-5)
    code, said = node("ledger")
    assert code == 0
    words = next(line for line in said.splitlines() if "/data/rows" in line).split()
    assert words == ["/data/rows.jsonl", "2", "4", f"{spent:.3g}", "1e-05", "no", "limit"]
    assert "what runs name, client 3" in said


def test_the_ledger_says_what_a_policy_leaves(node: Call, tmp_path: Path) -> None:
    other = tmp_path / "other"
    NodeLedger(other / "node").spend("rows", ONE.spent(), run="a")
    policy = tmp_path / "policy.toml"
    policy.write_text("apps = []\nmax-epsilon = 4.0\ndelta = 1e-6\n")
    policy.chmod(0o600)
    code, said = node("ledger", "--policy", str(policy), "--home", str(other), "--json")
    found: list[dict[str, Any]] = json.loads(said)
    spent = epsilon(0.1, 1.0, 5, 1e-6)
    assert code == 0
    assert found == [
        {
            "data_set": "rows",
            "runs": 1,
            "rounds": 1,
            "epsilon": pytest.approx(spent),
            "delta": 1e-6,
            "max_epsilon": 4.0,
            "left": pytest.approx(4.0 - spent),
        }
    ]
    assert node("ledger", "--json") == (0, "[]\n")


def test_a_ledger_of_an_older_release_counts_no_runs(node: Call, tmp_path: Path) -> None:
    """It wrote rounds alone, and nobody knows of which runs they were."""
    NodeLedger().spend("rows", ONE.spent(), run="a")
    file = tmp_path / "node" / "privacy.json"
    table = json.loads(file.read_text())
    del table["data_sets"]["rows"]["runs"]
    file.write_text(json.dumps(table))
    NodeLedger().spend("rows", ONE.spent(), run="b")
    (found,) = json.loads(node("ledger", "--json")[1])
    assert (found["runs"], found["rounds"]) == (None, 2)


def test_a_ledger_that_cannot_be_read_is_named(node: Call, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "privacy.json").write_text('{"orders": [2], "data_sets": {}}')
    code, said = node("ledger")
    assert code != 0
    assert "privacy.json: cannot be read" in said


@pytest.mark.parametrize("last", [False, True])
def test_a_supernode_takes_its_policy_anywhere_among_flowers_options(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--policy", str(tmp_path / "none.toml")]
    others = ["--superlink", "localhost:1", "--insecure"]
    arguments = [*others, *missing] if last else [*missing, *others]
    monkeypatch.setattr(sys, "argv", ["fedmoe", "supernode", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert f"policy {tmp_path}/none.toml: No such file or directory" in capsys.readouterr().err
