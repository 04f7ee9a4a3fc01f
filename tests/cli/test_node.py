"""`fedmoe node`: the digest of the app, whether a policy allows a run, what was asked of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedmoe_app.cli import main
from fedmoe_app.launch.gate import digest_of, log_path, note
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
