"""A run is found by its path, its name, or the beginning of its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmoe_app import ResultsError
from fedmoe_app.cli.main import app
from fedmoe_app.results.finding import find_run
from tests.cli.test_main import LINE


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``$FEDMOE_HOME/results`` with three runs; the working folder is another one."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    for name in ("fedavg-1", "fedavg-2", "night run"):
        folder = tmp_path / "home" / "results" / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "results"


def test_names_and_paths(results: Path) -> None:
    assert find_run("fedavg-1") == results / "fedavg-1"
    assert find_run("night") == results / "night run"
    assert find_run(str(results / "fedavg-2")) == results / "fedavg-2"
    assert find_run(os.path.relpath(results / "fedavg-2")).samefile(results / "fedavg-2")
    assert find_run(".") == Path.cwd()
    checkpoint = results / "fedavg-1" / "checkpoints" / "round-00001"
    checkpoint.mkdir(parents=True)
    assert find_run(checkpoint) == checkpoint


def test_ambiguous_and_unknown_ones_name_the_choices(results: Path) -> None:
    with pytest.raises(ResultsError, match=r"fedavg: 2 runs in .* begin so; .*fedavg-\d, fedavg-"):
        find_run("fedavg")
    with pytest.raises(ResultsError, match=r"no run of this name in .*; choose one of fedavg-"):
        find_run("fedvag-1")
    with pytest.raises(ResultsError, match=r"^no/such: no such folder"):
        find_run("no/such")
    with pytest.raises(ResultsError, match="there is none at all"):
        find_run("fedavg-1", results / "fedavg-1")


def test_a_folder_here_of_the_same_name(results: Path) -> None:
    here = Path.cwd() / "fedavg-1"
    here.mkdir()
    assert find_run("fedavg-1") == results / "fedavg-1"  # the one here is no run
    (here / "metrics.jsonl").write_text("")
    with pytest.raises(ResultsError, match="ambiguous; give the whole path"):
        find_run("fedavg-1")


def test_commands_take_names(results: Path) -> None:
    import json

    folder = results / "night run"
    (folder / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    assert "0.1250" in CliRunner().invoke(app, ["table", "night run"]).output
    status = CliRunner().invoke(app, ["status", "night"])
    assert f"{folder}/status.json: no such file" in str(status.exception)
    assert "no model there and no checkpoint" in str(
        CliRunner().invoke(app, ["export", "night"]).exception
    )
    assert "settings" not in str(CliRunner().invoke(app, ["plot", "night"]).exception)
    assert (folder / "accuracy.png").is_file()
