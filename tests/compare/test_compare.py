"""The command line, with fake and with real runs."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app.cli import main
from fedmoe_app.compare import compare as comparing
from fedmoe_app.launch import runner
from fedmoe_app.results.folder import RunFolder
from tests.compare.fakes import LOSES, REJECTS, calls, fake_run, line
from tests.conftest import REPOSITORY

SMALL = (
    "data.max-train-examples=160 data.max-test-examples=64 data.max-length=16 "
    "data.min-partition-size=10"
)
Call = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Call ``fedmoe compare``; returns exit code, lines printed, error."""
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments: str, output: Path | None = tmp_path / "out") -> tuple[int, list[str], str]:
        place = ["--output", str(output)] if output else []
        monkeypatch.setattr(sys, "argv", ["fedmoe", "compare", *arguments, *place])
        with pytest.raises(SystemExit) as end:
            main.main()
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out.splitlines(), captured.err

    return call


@pytest.fixture
def faked(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs that train nothing, in this process."""
    real = comparing.run_cells

    def run_here(cells: Any, folder: Any, workers: int, run: Any, here: bool) -> Any:
        return real(cells, folder, workers, fake_run, here=True)

    monkeypatch.setattr(comparing, "run_cells", run_here)
    yield


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_comparison_ends_with_table_files_and_folder(
    compare: Call, faked: None, tmp_path: Path
) -> None:
    code, lines, error = compare(
        "--schemes", "fedavg,fedprox", "--seeds", "1,2", "--alphas", "0.1,0.5", "--rounds", "2"
    )
    assert (code, error) == (0, "")
    assert lines[0] == f"comparison: {tmp_path / 'out'}"
    assert lines[-1] == f"results: {tmp_path / 'out'}"
    assert sum(line.startswith("| fedprox") for line in lines) == 2
    assert len(table(tmp_path / "out" / "comparison.csv")) == 10
    assert len(table(tmp_path / "out" / "summary.csv")) == 5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"comparison.md", "comparison.toml", "accuracy.png", "final.png", "cells"} <= names


def test_more_seeds_run_only_what_is_new(compare: Call, faked: None, tmp_path: Path) -> None:
    arguments = ("--schemes", "fedavg", "--rounds", "2", "--no-centralised", "--seeds")
    compare(*arguments, "1")
    code, lines, _ = compare(*arguments, "1,2")
    assert code == 0
    assert "2 runs, 1 of them kept; 1 to do" in lines
    assert calls(tmp_path / "out") == [
        "fedavg, dirichlet 0.5, seed 1",
        "fedavg, dirichlet 0.5, seed 2",
    ]


def test_a_failed_run_is_exit_code_one_and_stands_in_the_tables(
    compare: Call, faked: None, tmp_path: Path
) -> None:
    code, lines, _ = compare(
        "--schemes", "fedavg", "--seeds", "1,90", "--rounds", "2", "--no-centralised"
    )
    assert code == 1
    assert lines[-1].startswith("results: ")
    reason = "failed: fedavg, dirichlet 0.5, seed 90: ValueError: no such client"
    assert lines[-2] == reason
    assert reason in (tmp_path / "out" / "comparison.md").read_text()
    assert [row["status"] for row in table(tmp_path / "out" / "comparison.csv")] == ["ok", "failed"]


def test_a_run_whose_last_round_failed_is_exit_code_one(
    compare: Call, faked: None, tmp_path: Path
) -> None:
    code, lines, _ = compare(
        *("--schemes", "fedavg", "--seeds", f"1,{LOSES},{REJECTS}", "--rounds", "2"),
        "--no-centralised",
    )
    assert code == 1
    assert lines[-2].startswith(f"failed: fedavg, dirichlet 0.5, seed {LOSES}: no accuracy after")
    assert any(line.endswith("| 2, 1 failed, 2 replies missing |") for line in lines)
    rows = table(tmp_path / "out" / "comparison.csv")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert [row["missing_replies"] for row in rows] == ["0", "0", "2"]


def test_all_schemes_that_are_built_in_by_default(compare: Call, faked: None) -> None:
    code, lines, _ = compare("--seeds", "1", "--rounds", "2")
    assert code == 0
    shown = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert shown[2:] == ["centralised", *comparing.SCHEMES]


def test_without_output_the_plan_names_the_folder(
    compare: Call, faked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    arguments = ("--schemes", "fedavg", "--rounds", "2", "--seeds")
    _, first, _ = compare(*arguments, "1", output=None)
    _, second, _ = compare(*arguments, "1,2", output=None)
    assert first[-1] == second[-1]
    assert first[-1].startswith(f"results: {tmp_path}/results/compare-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schemes", "fedalgin"], 'scheme = "fedalgin": unknown; choose one of'),
        (["--schemes", "none.toml"], "--schemes none.toml: no such file"),
        (["--schemes", ""], "--schemes '': empty"),
        (["--seeds", "one"], "--seeds one: not a whole number"),
        (["--seeds", ""], "--seeds '': empty"),
        (["--alphas", "0"], "--alphas 0: must be"),
        (["--alphas", ""], "--alphas '': empty"),
        (["--clients", "1"], "--clients 1: the run config asks for min-clients = 2"),
        (["--rounds", "0"], "num-server-rounds = 0"),
        (["-c", "data.alfa=1"], "data.alfa: unknown key"),
        (["/nowhere"], "no pyproject.toml"),
    ],
)
def test_a_wrong_value_stops_before_anything_starts(
    compare: Call,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(comparing, "run_cells", lambda *_, **__: pytest.fail("started"))
    code, _, error = compare(*arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_or_something_else_is_refused(
    compare: Call, faked: None, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, _, error = compare("--schemes", "fedavg", output=tmp_path / "file")
    assert (code, "a file; name a folder" in error) == (1, True)
    code, _, error = compare("--schemes", "fedavg", output=tmp_path)
    assert (code, "not those of a comparison" in error) == (1, True)


def test_an_interruption_ends_with_130(compare: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "run_cells", interrupt)
    code, lines, _ = compare("--schemes", "fedavg")
    assert code == 130
    assert "the same command goes on from there" in lines[-1]


def test_simulated_runs_go_through_the_launcher(
    compare: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[Any, ...]] = []

    def launch(app: Path, flat: Any, clients: int, gpus: float, verbose: bool) -> None:
        seen.append((app, flat["seed"], clients))
        folder = RunFolder(Path(flat["output-dir"]) / flat["run-name"])
        for number in range(2):
            folder.append(line(number, 0.5, (0.5,) if number else ()))

    monkeypatch.setattr(runner, "run_simulated", launch)
    code, _, error = compare(
        *("--schemes", "fedavg", "--seeds", "4", "--rounds", "1", "--simulation"),
        *("--clients", "3", "--no-centralised"),
    )
    assert (code, error) == (0, "")
    assert seen == [(REPOSITORY, 4, 3)]
    assert table(tmp_path / "out" / "comparison.csv")[0]["accuracy"] == "0.5"


def test_a_real_comparison_starts_all_schemes_from_the_same_model(
    compare: Call, tmp_path: Path
) -> None:
    code, lines, error = compare(
        *("--schemes", "fedavg,fedprox", "--seeds", "1", "--clients", "2", "--rounds", "1"),
        *("--workers", "1", "-c", SMALL),
    )
    assert (code, error) == (0, "")
    central, fedavg, fedprox = table(tmp_path / "out" / "comparison.csv")
    assert central["scheme"] == "centralised"
    # One seed, one set of initial weights, for the reference, too.
    assert central["initial_loss"] == fedavg["initial_loss"] == fedprox["initial_loss"]
    assert fedavg["loss"] != fedprox["loss"]
    assert int(fedavg["bytes_up_total"]) > int(central["bytes_up_total"]) > 0
    log = tmp_path / "out" / "cells" / fedavg["cell"] / "run.log"
    assert "round 1/1: loss" in log.read_text()
    assert "round 1/1" not in "\n".join(lines)
