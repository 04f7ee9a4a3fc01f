"""The charts of a comparison hold means and intervals over its seeds."""

import re
from pathlib import Path

import pytest

from fedmoe_app.compare.plan import Plan
from fedmoe_app.compare.plots import charts_of, multiples_of, plot_comparison
from fedmoe_app.compare.summary import Result, results_of
from fedmoe_app.report.charts import Chart
from fedmoe_app.report.files import picture_of
from fedmoe_app.report.paper import PAPERS
from tests.compare.fakes import broken, example, lines, plan_and_outcomes
from tests.report.schema import check


def drawn(chart: Chart, key: str = "y") -> dict[str, list[float]]:
    """The values of each series, by its name in the legend."""
    names = {s: entry["name"] for entry in chart.legend for s in entry["series"]}
    found: dict[str, list[float]] = {}
    for row in chart.spec["data"]["values"]:
        found.setdefault(names[row["s"]], []).append(row[key])
    return found


def test_a_line_a_scheme_with_a_band_over_the_seeds() -> None:
    plan, outcomes = example()
    results = results_of(plan, outcomes)
    iid, dirichlet = (
        charts_of(plan, results, name, "accuracy")["accuracy"] for name in plan.partitions
    )
    found = drawn(iid)
    assert list(found) == ["fedavg", "fedprox", "centralised"]
    assert found["fedavg"] == pytest.approx([0.1, 0.5, 0.65])
    # FedProx has one seed on dirichlet 0.1: a line without a band.
    banded = {row["s"] for row in dirichlet.spec["data"]["values"] if "low" in row}
    names = {entry["name"] for entry in dirichlet.legend if set(entry["series"]) & banded}
    assert "fedprox" not in names
    check(iid.spec)


def test_the_final_chart_has_a_row_a_scheme() -> None:
    plan, outcomes = example()
    chart = charts_of(plan, results_of(plan, outcomes), "iid", "accuracy")["final"]
    names = [row["name"] for row in chart.spec["layer"][0]["data"]["values"]]
    assert names == ["fedavg", "fedprox", "centralised"]
    check(chart.spec)


def test_a_run_without_a_final_accuracy_is_in_no_curve() -> None:
    plan, outcomes = broken()
    results = results_of(plan, outcomes)
    chart = charts_of(plan, results, plan.partitions[0], "accuracy")["accuracy"]
    assert next(iter(drawn(chart).values())) == pytest.approx([0.1, 0.5, 0.7])


def test_ten_schemes_differ_in_colour_dash_or_mark() -> None:
    runs = {(f"scheme-{i}", "iid", 1): lines(0.1, 0.2) for i in range(10)}
    plan, outcomes = plan_and_outcomes({**runs})
    legend = charts_of(plan, results_of(plan, outcomes), "iid", "accuracy")["accuracy"].legend
    looks = {(entry["colour"], entry["shape"], tuple(entry["dash"])) for entry in legend}
    assert len(looks) == 10


@pytest.mark.parametrize("failed", [False, True])
def test_plots_are_drawn_whatever_is_missing(tmp_path: Path, failed: bool) -> None:
    plan, outcomes = example()
    if failed:
        plan, outcomes = plan_and_outcomes(
            {("fedavg", "iid", 1): "ValueError: no", ("fedprox", "iid", 1): lines(None, None)}
        )
    paths = plot_comparison(tmp_path, plan, results_of(plan, outcomes), "accuracy")
    assert [path.name for path in paths] == ([] if failed else ["accuracy.png", "final.png"])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(list(tmp_path.iterdir())) == len(paths)


def test_a_band_goes_from_the_lower_end_to_the_upper() -> None:
    plan, outcomes = example()
    chart = charts_of(plan, results_of(plan, outcomes), "iid", "accuracy")["accuracy"]
    band = chart.spec["layer"][0]
    assert band["mark"]["type"] == "area"
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("low", "high")
    assert band["encoding"]["y"]["scale"]["domain"][0] == 0


# -- many schemes, and paper -------------------------------------------------------------------


def many(schemes: int) -> tuple[Plan, list[Result]]:
    runs = {(f"scheme-{i}", "iid", seed): lines(0.1, 0.2 + seed / 20, 0.3 + i / 20)
            for i in range(schemes) for seed in (1, 2)}  # fmt: skip
    plan, outcomes = plan_and_outcomes({**runs})
    return plan, results_of(plan, outcomes)


def test_ten_schemes_have_a_panel_each_beside_the_first() -> None:
    plan, results = many(10)
    (part,), legend = multiples_of(plan, results, "accuracy")
    assert [panel["title"]["text"] for panel in part["concat"]] == [
        f"scheme-{i}" for i in range(1, 10)
    ]
    assert [entry["name"] for entry in legend] == [
        "scheme-0", "scheme of the panel, with its interval",
    ]  # fmt: skip
    ends = {str(panel["layer"][0]["encoding"]["y"]["scale"]["domain"]) for panel in part["concat"]}
    assert len(ends) == 1  # one axis for all
    check(picture_of([part], legend))


# Every width, and both layouts: lines in one chart, and a panel a scheme.
@pytest.mark.parametrize(("name", "schemes"), [("column", 10), ("page", 2)])
def test_pictures_for_a_paper_are_as_wide_as_asked(name: str, schemes: int, tmp_path: Path) -> None:
    plan, results = many(schemes)
    paper = PAPERS[name]
    paths = plot_comparison(tmp_path, plan, results, "accuracy", ("pdf", "svg", "png"), paper)
    assert len(paths) == 6
    for path in paths:
        data = path.read_bytes()
        if path.suffix == ".pdf":
            found = re.search(rb"MediaBox \[0 0 ([0-9.]+)", data)
            points = float(found[1]) if found else 0.0
        elif path.suffix == ".svg":
            points = float(data.partition(b'width="')[2].partition(b'pt"')[0])
            box = float(data.partition(b'viewBox="0 0 ')[2].partition(b" ")[0])
            smallest = 11 * points / box
            assert smallest > 6  # points of the smallest letters
        else:
            points = int.from_bytes(data[16:20], "big") / 300 * 72
        assert points == pytest.approx(paper.points, abs=0.3), path.name
