"""Scales, cells and numbers of heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from fedmoe_app.report.cubes import CLIENT, EXPERT, LAYER, OTHER, Axis, Cube
from fedmoe_app.report.heat import Map, file_map, matrix, page_map, scale_of
from tests.report.schema import check

NAN = np.nan
SHARE = Map("Title", "About.", "cube", CLIENT, EXPERT, label="share")
PAIRS = Map("D", "", "cube", CLIENT, OTHER, "number", least=0.05, middle=0.0)


def cube(values: np.ndarray) -> Cube:
    """Values ``[R, N, L, E]``."""
    names = ("round", CLIENT, LAYER, EXPERT)
    axes = (Axis(name, tuple(map(str, range(size)))) for name, size in
            zip(names, values.shape, strict=True))  # fmt: skip
    return Cube(tuple(axes), values)


@pytest.mark.parametrize(
    ("values", "least", "ends"),
    [
        ([0.1, 0.4, NAN], 0.2, (0, 0.4, False)),
        ([0.1], 0.2, (0, 0.2, False)),
        ([NAN], 0.2, (0, 0.2, False)),
        ([0.0], 0.0, (0, 1.0, False)),
        ([*[0.0] * 999, 5.0], 0.2, (0, 0.2, True)),  # an outlier does not set the scale
    ],
)
def test_the_scale_follows_the_values(
    values: list[float], least: float, ends: tuple[float, float, bool]
) -> None:
    assert scale_of(SHARE._replace(least=least), np.array([values]), 0, 1) == ends


@pytest.mark.parametrize(
    ("ratios", "ends"),
    [
        ([1.001, 0.999, NAN], (0.95, 1.05)),  # rounding does not look like structure
        ([0.9, 1.04], (0.9, 1.1)),
        ([0.25, 4.0], (0.0, 4.0)),
    ],
)
def test_a_scale_around_one(ratios: list[float], ends: tuple[float, float]) -> None:
    each = SHARE._replace(form="number", least=0.05, middle=1.0)
    assert scale_of(each, np.array([ratios]), 0, 1)[:2] == pytest.approx(ends)


@pytest.mark.parametrize(
    ("pair", "end"), [(0.001, 0.05), (NAN, 0.05), (-0.2, 0.2), (0.6, 1.0), (-1.0, 1.0)]
)
def test_the_diagonal_does_not_set_the_scale(pair: float, end: float) -> None:
    scale = scale_of(PAIRS, np.array([[[1.0, pair], [pair, 1.0]]]), 1, 2)
    assert (scale.low, scale.high) == (-end, end)


def cells(each: Map, values: list[list[float]]) -> list[dict]:
    numbers = np.array(values)
    rows, columns = (Axis(name, tuple(map(str, range(size)))) for name, size in
                     zip((CLIENT, EXPERT), numbers.shape, strict=True))  # fmt: skip
    spec = file_map(each, "a", rows, columns, numbers, scale_of(each, numbers, 0, 1))
    check(spec)
    return spec["data"]["values"]


def test_a_file_has_a_row_for_each_cell() -> None:
    first, second = cells(SHARE, [[0.25, NAN]])
    assert first == {"row": "0", "column": "0", "v": 0.25, "text": "25",
                     "said": "client 0, expert 0"}  # fmt: skip
    assert (second["v"], second["text"]) == (None, "×")


def test_small_numbers_are_multiples_of_a_power_of_ten() -> None:
    each = SHARE._replace(form="number")
    assert [cell["text"] for cell in cells(each, [[0.0024, 0.0, -0.0, 0.0011]])] == [
        "2.4", "0.0", "0.0", "1.1",
    ]  # fmt: skip
    assert [cell["text"] for cell in cells(each, [[0.5, 12.0]])] == ["0.50", "12.00"]


def test_the_page_looks_the_numbers_up() -> None:
    values = np.arange(2 * 3 * 2 * 4, dtype=float).reshape(2, 3, 2, 4)
    chart = page_map(SHARE, cube(values))
    found = {param["name"]: param["value"] for param in chart.spec["params"]}
    assert (found["at0"], found["at2"]) == (1, 0)  # the last round, the first layer
    assert chart.spec["data"]["sequence"]["stop"] == 3 * 4
    index = chart.spec["transform"][2]["calculate"]
    assert index == "cube[at0 * 24 + datum.r * 8 + at2 * 4 + datum.c * 1]"
    assert values.ravel()[1 * 24 + 2 * 8 + 1 * 4 + 3] == values[1, 2, 1, 3]
    assert (chart.cube, chart.columns) == ("cube", 4)
    check(chart.spec)


def test_a_matrix_of_a_cube_goes_down_and_right() -> None:
    values = np.arange(24.0).reshape(1, 2, 3, 4)
    place = {"round": 0, LAYER: 2}
    np.testing.assert_array_equal(matrix(cube(values), CLIENT, EXPERT, **place), values[0, :, 2])
    np.testing.assert_array_equal(matrix(cube(values), EXPERT, CLIENT, **place), values[0, :, 2].T)
