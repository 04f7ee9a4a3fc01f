"""Comparisons read back from folders, and their page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, ResultsError
from fedmoe_app.cli.main import main
from fedmoe_app.cli.report import write_report
from fedmoe_app.compare import reading
from fedmoe_app.compare.page import comparison_page
from fedmoe_app.compare.summary import results_of, summarise
from tests.report.html.runs import line, write_run
from tests.report.html.test_page import HOSTILE, Reader, data_of


def run(path: Path, accuracy: float, **overrides: Any) -> Path:
    last = line(1) | {"accuracy": accuracy}
    return write_run(path, [line(0), last], **overrides)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two schemes with two seeds each."""
    figures = {("fedavg", 1): 0.4, ("fedavg", 2): 0.5, ("fcmoe", 1): 0.6, ("fcmoe", 2): 0.6}
    return [
        run(tmp_path / f"{scheme}-{seed}", value, scheme=scheme, seed=seed)
        for (scheme, seed), value in figures.items()
    ]


def test_runs_become_rows_and_seeds(runs: list[Path]) -> None:
    found = reading.collect_runs(runs)
    assert found.plan.schemes == ("fedavg", "fcmoe")
    assert found.plan.seeds == (1, 2)
    assert found.plan.partitions == ("dirichlet 0.5",)
    first, second = summarise(found.plan, results_of(found.plan, found.outcomes))
    assert first.accuracy is not None
    assert first.accuracy.mean == pytest.approx(0.45)
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.15)


def test_the_page_has_means_and_intervals(runs: list[Path]) -> None:
    data = data_of(Reader(comparison_page("both", reading.collect_runs(runs))))
    points = data["charts"]["accuracy-0"]["spec"]["data"]["values"]
    point = next(p for p in points if (p["s"], p["x"]) == (0, 1))
    assert point["y"] == pytest.approx(0.45)
    # t(0.975, 1) = 12.706 times s/√n = 0.05
    assert (point["low"], point["high"]) == pytest.approx((-0.1853, 1.0853), abs=1e-4)
    final = data["charts"]["final-0"]
    assert [entry["name"] for entry in final["legend"]][1] == "global model: one seed"
    rows = [row for row in final["spec"]["data"]["values"] if row["s"] == 1]
    assert [row["v"] for row in rows] == [0.4, 0.5, 0.6, 0.6]


def test_runs_stand_in_order_and_what_differs_is_listed(tmp_path: Path) -> None:
    rates = {("fedavg", 1): 0.1, ("fedavg", 2): 0.1, ("fcmoe", 1): 0.2, ("fcmoe", 2): 0.2}
    runs = [
        run(tmp_path / f"{scheme}-{seed}", 0.4, scheme=scheme, seed=seed,
            **{"train.learning-rate": rate})
        for (scheme, seed), rate in rates.items()
    ]  # fmt: skip
    shown = Reader(comparison_page("both", reading.collect_runs(runs[::-1]))).shown
    table = shown[shown.index("Runs") :]
    # The scheme of the first run comes first, and its seeds in order.
    assert table.index("fcmoe") < table.index("fedavg")
    assert 'scheme = "fcmoe"; train.learning-rate = 0.2' in shown
    assert 'scheme = "fedavg"; train.learning-rate = 0.1' in shown


def test_rows_of_one_scheme_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", 0.4), run(tmp_path / "b", 0.5, **{"train.learning-rate": 0.1})]
    assert reading.collect_runs(runs).plan.schemes == ("fedavg (a)", "fedavg (b)")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "the same scheme, settings and seed"),
        ({"seed": 7, "num-server-rounds": 5}, "not that of round 5; leave it out"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    runs = [run(tmp_path / "a", 0.4), run(tmp_path / "b", 0.4, **overrides)]
    with pytest.raises(ResultsError, match=rf"b: .*{message}"):
        reading.collect_runs(runs)


def comparison(folder: Path) -> Path:
    """The folder of a comparison with one finished run and one that failed."""
    (folder / "cells").mkdir(parents=True)
    path = run(folder / "cells" / "k1", 0.4, scheme=HOSTILE)
    about = {"scheme": HOSTILE, "partition": "iid", "seed": 42, "clients": 2}
    (path / "cell.json").write_text(json.dumps(about))
    other = run(folder / "cells" / "k3", 0.9, seed=9)  # of an earlier call
    (other / "cell.json").write_text(json.dumps(about | {"seed": 9}))
    asked = f"rows = [{json.dumps(HOSTILE)}]\npartitions = ['iid']\nseeds = [42, 43]\nclients = 2\n"
    (folder / "comparison.toml").write_text(asked)
    (folder / "comparison.csv").write_text(
        "scheme,partition,seed,status,cell,failure\n"
        f'"{HOSTILE.replace(chr(34), chr(34) * 2)}",iid,43,failed,k2,no <b>memory</b>\n'
    )
    return folder


def test_the_page_of_a_comparison_names_what_failed(tmp_path: Path) -> None:
    path = write_report([comparison(tmp_path / "c")])
    assert path == tmp_path / "c" / "report.html"
    reader = Reader(path.read_text())
    assert "no <b>memory</b>" in reader.shown
    assert "1 of 2 runs" in reader.shown
    assert "0.900" not in reader.shown
    assert len(reader.named("script")) == 3
    assert reader.named("b") == reader.named("img") == []


def test_a_comparison_without_a_finished_run_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "comparison.toml").write_text("rows = []\npartitions = []\nseeds = []\nclients = 1")
    with pytest.raises(ResultsError, match="no finished run"):
        write_report([tmp_path])


def test_what_report_is_given_wrongly(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(ResultsError, match="none: no such folder"):
        write_report([tmp_path / "none"])
    with pytest.raises(ConfigError, match="--output is for several runs"):
        write_report([runs[0], runs[0] / "report.html"], tmp_path)
    with pytest.raises(ResultsError, match="has a page of its own"):
        write_report([runs[0], comparison(tmp_path / "c")])


def test_the_folder_of_many_long_names_of_any_script_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    runs = [run(tmp_path / f"{i}{'中' * 80}", 0.4, seed=i) for i in range(3)]
    path = write_report(runs)
    assert path.parent.name == "report-" + "-".join(f"{i}{'中' * 19}" for i in range(3))


def test_the_command_prints_the_path_last(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    for arguments, place in (
        (runs[:1], runs[0]),
        (runs, tmp_path / "home/results/report-fedavg-1-fedavg-2-fcmoe-1-and-1-more"),
    ):
        monkeypatch.setattr("sys.argv", ["fedmoe", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(place / "report.html")
        assert (place / "report.html").is_file()
