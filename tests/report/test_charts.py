"""The points, ends and legends of charts, worked out by hand; every kind fits the schema."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from jsonschema.exceptions import ValidationError

from fedmoe_app.report.charts import (
    BLUE,
    GREY,
    ORANGE,
    Axis,
    Chart,
    Dots,
    Point,
    Series,
    bars,
    dots,
    lines,
    percent,
    seconds,
    spread_out,
    style,
    three,
)
from fedmoe_app.results.table import human_bytes
from tests.report.schema import check

AXIS = Axis("accuracy", three, most=1)


def rows(chart: Chart) -> list[dict[str, Any]]:
    return chart.spec["data"]["values"]


def domain(chart: Chart) -> list[float]:
    return chart.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]


def tips(chart: Chart) -> list[str]:
    return [row["tip"] for row in chart.spec["layer"][-1]["data"]["values"]]


def test_lines_have_their_points_band_dots_and_text() -> None:
    chart = lines(
        "Accuracy",
        [
            Series("a", [Point(0, 0.1), Point(1, 0.2, 0.15, 0.3, 4)], dots=[(1, 0.15), (1, 0.3)]),
            Series("b", [Point(1, 0.4)], ORANGE),
            Series("nothing", []),
        ],
        AXIS,
        failed=[2],
    )
    assert rows(chart) == [
        {"s": 0, "x": 0, "y": 0.1},
        {"s": 0, "x": 1, "y": 0.2, "low": 0.15, "high": 0.3},
        {"s": 1, "x": 1, "y": 0.4},
    ]
    assert chart.spec["layer"][0]["data"]["values"] == [
        {"s": 0, "x": 1, "y": 0.15}, {"s": 0, "x": 1, "y": 0.3},
    ]  # fmt: skip
    assert tips(chart) == [
        "round 0\na: 0.100",
        "round 1\na: 0.200 (0.150 to 0.300, n = 4)\nb: 0.400",
    ]
    assert [entry["name"] for entry in chart.legend] == ["a", "b", "failed round"]
    assert [entry["series"] for entry in chart.legend] == [[0], [1], []]
    assert chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [-0.5, 2.5]
    check(chart.spec)


@pytest.mark.parametrize(
    ("points", "axis", "ends"),
    [
        ([Point(1, 0.5)], AXIS, (0, 0.53)),  # 6 % above the highest
        ([Point(1, 0.99)], AXIS, (0, 1)),
        ([Point(1, 0.0)], AXIS, (0, 1)),
        ([Point(1, 0.5), Point(2, 0.7)], AXIS._replace(low=None, span=0.5), (0.3, 0.9)),
        ([Point(1, -1.0), Point(2, 1.0)], AXIS._replace(low=None, most=None), (-1.1272, 1.12)),
        # The interval of two seeds reaches half the spread beyond the points, no further.
        ([Point(1, 0.2), Point(2, 0.4, -2.0, 3.0)], AXIS, (0, 0.53)),
    ],
)
def test_the_axis_follows_the_points(
    points: list[Point], axis: Axis, ends: tuple[float, float]
) -> None:
    assert domain(lines("a", [Series("a", points)], axis)) == pytest.approx(ends)


def test_what_is_no_number_is_left_out() -> None:
    points = [Point(0, 2.0), Point(1, math.inf), Point(2, math.nan)]
    assert rows(lines("a", [Series("a", points)], AXIS)) == [{"s": 0, "x": 0, "y": 2.0}]
    assert lines("a", [Series("a", points[1:])], AXIS).spec == {}


def test_one_round_has_a_band_that_can_be_seen() -> None:
    chart = lines("a", [Series("a", [Point(1, 0.2, 0.1, 0.3)])], AXIS)
    assert chart.spec["layer"][0]["mark"]["type"] == "rule"
    check(chart.spec)


def test_series_of_one_name_are_one_entry_of_the_legend() -> None:
    same = [Series("threshold", [Point(1, 0.2)], colour, key=GREY) for colour in (BLUE, ORANGE)]
    (entry,) = lines("a", same, AXIS).legend
    assert (entry["colour"], entry["series"]) == (GREY, [0, 1])


def test_bars_stand_beside_each_other_and_fill_four_fifths() -> None:
    series = [Series("up", [Point(1, 1_200_000)]), Series("down", [Point(1, 400_000)], ORANGE)]
    chart = bars("Bytes", series, Axis("bytes", human_bytes))
    first, second = rows(chart)
    assert (first["x"], second["x"]) == pytest.approx((0.6, 1.0))
    assert (first["to"], second["to"]) == pytest.approx((0.976, 1.376))
    assert (first["y"], second["y"]) == (1_200_000, 400_000)
    assert tips(chart) == ["round 1\nup: 1.20 MB\ndown: 400 kB"]
    written = chart.spec["layer"][0]["encoding"]["y"]["axis"]["labelExpr"]
    assert written == "format(datum.value / 1e+06, '~r') + ' MB'"
    check(chart.spec)


def test_dots_have_values_intervals_and_text() -> None:
    chart = dots(
        "Final",
        ["fedavg", "a scheme with a long name"],
        [
            Dots("mean", [[0.45], [0.6]], ends=[(0.3, 0.6), None]),
            Dots("one seed", [[0.4, 0.5], [0.6]], small=True),
            Dots("none", [[], []]),
        ],
        Axis("accuracy", three, high=1),
        joined=True,
    )
    assert [(row["s"], row["v"]) for row in rows(chart)] == [
        (0, 0.45), (0, 0.6), (1, 0.4), (1, 0.5), (1, 0.6),
    ]  # fmt: skip
    assert tips(chart) == [
        "fedavg\nmean: 0.450 (0.300 to 0.600)\none seed: 0.400, 0.500",
        "a scheme with a long name\nmean: 0.600\none seed: 0.600",
    ]
    # A long name stands over its row and is not cut.
    assert [row["name"] for row in chart.spec["layer"][0]["data"]["values"]][1].endswith("name")
    check(chart.spec)
    assert dots("Final", [], [], AXIS).spec == {}


def test_sixty_lines_look_different() -> None:
    looks = [tuple(style(index).values()) for index in range(60)]
    assert len(set(looks)) == 60


def test_how_numbers_are_written() -> None:
    assert three(0.12345) == "0.123"
    assert percent(0.125) == "12.5 %"
    assert [seconds(value) for value in (1.234, 123.4)] == ["1.23 s", "123 s"]


def test_the_schema_finds_a_misspelled_key() -> None:
    spec = lines("a", [Series("a", [Point(1, 0.5)])], AXIS).spec
    spec["layer"][0]["encoding"]["x"]["fild"] = "x"
    with pytest.raises(ValidationError):
        check(spec)


def test_many_lines_have_their_names_at_their_ends_and_few_have_none() -> None:
    def drawn(count: int) -> list[Any]:
        series = [Series(f"s{i}", [Point(1, 0.1), Point(2, 0.5 + i / 1000)]) for i in range(count)]
        chart = lines("Accuracy", series, AXIS)
        check(chart.spec)
        layers = chart.spec["layer"]
        return [layer for layer in layers if layer["mark"]["type"] == "text"]

    assert drawn(6) == []
    (named,) = drawn(9)
    rows = named["data"]["values"]
    assert [row["name"] for row in rows] == [f"s{i}" for i in range(9)]
    places = [row["y"] for row in rows]
    assert min(b - a for a, b in pairwise(places)) > 0.02  # 14 of 240 pixels of 0 to 0.53
    assert sum(places) / 9 == pytest.approx(0.504)  # around the middle of their lines


def test_places_are_moved_apart_no_further_than_they_must() -> None:
    assert spread_out([0.0, 5.0, 10.0], 2) == [0, 5, 10]
    assert spread_out([1.0, 1.0], 2) == [0, 2]
    assert spread_out([0.0, 1.0, 1.0, 9.0], 2) == pytest.approx([-4 / 3, 2 / 3, 8 / 3, 9])
