"""The charts of a comparison hold means and intervals over its seeds."""

from pathlib import Path

import pytest

from fedmoe_app.compare.plots import charts_of, plot_comparison
from fedmoe_app.compare.summary import results_of
from fedmoe_app.report.charts import Chart
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
