"""The charts of a run hold the numbers of its metrics lines."""

from __future__ import annotations

import math

import pytest

from fedmoe_app.report.run_charts import (
    MAX_DRAWN,
    charts_of,
    clients_chart,
    diagnostic_charts,
    many,
    ratio_curves,
    relative_entropy_curves,
    threshold_curves,
)
from tests.report.html.runs import client, line
from tests.report.lines import Line, failed, plain, run, start
from tests.report.schema import check

LINES = [line(0), line(1), line(2, (1,))]
HALF = -2 * 0.5 * math.log(0.5)


def points(charts: dict, name: str) -> dict[str, list[tuple]]:
    """The points of each series of a chart, by its name in the legend."""
    chart = charts[name]
    names = {s: entry["name"] for entry in chart.legend for s in entry["series"]}
    found: dict[str, list[tuple]] = {}
    for row in chart.spec["data"]["values"]:
        keys = [key for key in ("x", "y", "low", "high") if key in row]
        found.setdefault(names[row["s"]], []).append(tuple(row[key] for key in keys))
    return found


def test_lines_of_a_run_become_points() -> None:
    charts = charts_of(LINES, "accuracy")
    own, local, model = points(charts, "accuracy").values()
    # What a client received in round r is the model after round r - 1.
    assert own == [(0, 0.25, 0.25, 0.25), (1, 0.25, 0.25, 0.25)]
    assert local == [(1, 0.525, 0.5, 0.55), (2, 0.55, 0.55, 0.55)]
    assert model == [(0, 0.125), (1, 0.25), (2, 0.375)]
    assert list(points(charts, "loss")) == [
        "global model on clients' own data, mean over clients",
        "local training, mean over clients",
        "global model",
    ]
    up, down = points(charts, "bytes").items()
    assert up[0] == "up: clients to server, 300 B in all"
    assert [y for _, y in up[1]] == [200, 100]
    assert [y for _, y in down[1]] == [400, 200]
    assert [y for _, y in points(charts, "seconds")["evaluation"]] == [0.5, 0.5]
    for chart in charts.values():
        check(chart.spec)


def test_few_clients_have_a_dot_each_and_many_a_band_alone() -> None:
    for clients, drawn in ((MAX_DRAWN, MAX_DRAWN), (MAX_DRAWN + 1, 0)):
        first = line(1, tuple(range(clients)))
        spec = charts_of([line(0), first], "accuracy")["loss"].spec
        values = [row["y"] for row in spec["layer"][0].get("data", {"values": []})["values"]]
        assert values.count(1.6) == drawn


def test_a_run_that_has_not_begun_has_no_bars() -> None:
    charts = charts_of([line(0)], "accuracy")
    assert charts["bytes"].spec == charts["seconds"].spec == {}
    assert charts["accuracy"].spec


def test_failed_rounds_are_marked() -> None:
    spec = charts_of([line(0), line(1) | {"status": "failed"}], "accuracy")["loss"].spec
    marked = [layer["data"]["values"] for layer in spec["layer"]
              if layer["mark"].get("color") == "var(--bad)"]  # fmt: skip
    assert marked == [[{"from": 0.5, "to": 1.5}]]


def test_clients_before_and_after() -> None:
    chart = clients_chart([client(0), client(3, local_accuracy=None)], "accuracy")
    assert [(row["s"], row["v"]) for row in chart.spec["data"]["values"]] == [
        (0, 0.25), (0, 0.25), (1, 0.5),
    ]  # fmt: skip
    assert clients_chart([{"client": 0}], "accuracy").spec == {}


def two(number: int, **diagnostics: object) -> Line:
    clients = [{"client": 3}, {"client": 5}]
    return plain(number) | {"clients": clients, "diagnostics": diagnostics}


def test_conflict_and_kappa_are_means_over_experts() -> None:
    lines = [
        start(),
        two(1, conflict=[[0.5, 0.0]], kappa=[[0.2, 0.0]]),
        failed(2),
        two(3, conflict=[[0.25, None]], kappa=[[0.1, None]]),
        plain(4),
    ]
    charts = diagnostic_charts(lines)
    assert list(charts) == ["conflict-curves", "kappa-curves"]
    assert points(charts, "conflict-curves") == {"layer 0": [(1, 0.25), (3, 0.25)]}
    assert points(charts, "kappa-curves") == {"layer 0": [(1, 0.1), (3, 0.1)]}


def test_similarity_has_a_threshold_a_layer() -> None:
    lines = [two(1, similarity_mean=[[0.5], [0.25]], threshold=[[0.125], [0.0]])]
    charts = diagnostic_charts(lines)
    assert points(charts, "similarity-curves") == {
        "layer 0": [(1, 0.5)], "layer 1": [(1, 0.25)], "threshold τ": [(1, 0.125), (1, 0.0)],
    }  # fmt: skip
    check(charts["similarity-curves"].spec)


def test_the_threshold_counts_the_experts_that_have_pairs() -> None:
    lines = [
        two(1, similarity_mean=[[0.5, None], [0.1, 0.3]], threshold=[[0.4, 1.0], [0.2, 0.4]]),
        two(2, threshold=[[0.4, 1.0], [0.2, 0.4]]),
    ]
    assert threshold_curves(lines) == {
        "layer 0": [(1, 0.4)],
        "layer 1": [(1, pytest.approx(0.3))],
    }


def test_entropy_stands_in_relation_to_equal_weights() -> None:
    # Expert 0: equal weights, expert 1: one client has all, expert 2: nobody gives it anything.
    omega = [[[0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]]
    lines = [two(1, omega=omega, omega_entropy=[[HALF, 0.0, 0.0]])]
    assert relative_entropy_curves(lines) == {"layer 0": [(1, pytest.approx(0.5))]}


def test_one_client_has_no_relative_entropy() -> None:
    assert relative_entropy_curves([two(1, omega=[[[1.0]]], omega_entropy=[[0.0]])]) == {}


def test_a_ratio_a_client_over_rounds() -> None:
    curves = ratio_curves(run(3, 5, 1, 4))
    # Client 3 of the synthetic run has no budget.
    assert list(curves) == ["client 0", "client 1", "client 2", "client 4"]
    assert [number for number, _ in curves["client 4"]] == [1, 2, 3]


def test_many_curves_become_their_mean_and_range() -> None:
    curves = {f"layer {i}": [(1, float(i))] for i in range(MAX_DRAWN + 1)}
    (series,) = many(curves, "layers")
    assert series.name == "mean of 13 layers, lowest to highest"
    assert series.points == [(1, 6.0, 0.0, 12.0, 13)]
    assert len(many(dict(list(curves.items())[1:]), "layers")) == MAX_DRAWN
