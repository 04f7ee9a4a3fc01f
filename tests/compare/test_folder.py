import json
import tomllib
from pathlib import Path

import pytest

from fedmoe_app import ResultsError
from fedmoe_app.compare.execute import run_cell
from fedmoe_app.compare.folder import ComparisonFolder
from tests.compare.fakes import RAISES, cell, example, fake_run


def test_a_finished_cell_keeps_config_metrics_and_log_only(tmp_path: Path) -> None:
    one = cell(seed=5)
    run_cell(fake_run, tmp_path / "out", one)
    folder = tmp_path / "out" / "cells" / one.key
    assert {p.name for p in folder.iterdir()} == {
        "cell.json",
        "config.toml",
        "metrics.jsonl",
        "run.log",
    }
    assert (folder / "run.log").read_text() == "hello from a run\n"
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["data"] == {"partition": "iid"}
    assert "output-dir" not in config
    about = json.loads((folder / "cell.json").read_text())
    assert about == {"scheme": "fedavg", "partition": "iid", "seed": 5, "clients": 2}


def test_a_failed_run_leaves_its_log_and_no_cell(tmp_path: Path) -> None:
    one = cell(seed=RAISES)
    with ComparisonFolder(tmp_path / "out") as folder:
        with pytest.raises(ValueError, match="no such"):
            run_cell(fake_run, folder.path, one)
        assert folder.failed_log(one).read_text() == "hello from a run\n"
        assert folder.kept(one) is None


def test_what_an_interrupted_call_left_is_dropped(tmp_path: Path) -> None:
    (tmp_path / ".unfinished" / "abc").mkdir(parents=True)
    (tmp_path / "failed").mkdir()
    (tmp_path / "comparison.toml").touch()
    with ComparisonFolder(tmp_path) as folder:
        assert {p.name for p in folder.path.iterdir()} == {".lock", "comparison.toml"}


def test_the_plan_is_noted(tmp_path: Path) -> None:
    plan, _ = example()
    with ComparisonFolder(tmp_path) as folder:
        folder.write_plan(plan)
    noted = tomllib.loads((tmp_path / "comparison.toml").read_text())
    assert noted["rows"] == ["centralised", "fedavg", "fedprox"]
    assert noted["seeds"] == [1, 2]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ResultsError, match="out: a file; name a folder"):
        ComparisonFolder(tmp_path / "out")
    with pytest.raises(ResultsError, match="name another"):
        ComparisonFolder(tmp_path / "out" / "below")


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(ResultsError, match="holds files that are not those of a comparison"):
        ComparisonFolder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        ComparisonFolder(tmp_path),
        pytest.raises(ResultsError, match="another comparison is writing"),
        ComparisonFolder(tmp_path),
    ):
        pass
    with ComparisonFolder(tmp_path):
        pass
