import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.curves import (
    MAX_LINES,
    draw_curves,
    finish_curves,
    follow_data,
    line_style,
    quantiles,
    start_at_zero,
)
from tests.report.diagnostics.lines import failed, plain


@pytest.fixture
def axes() -> Axes:
    return Figure(layout="constrained").subplots()


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_few_curves_get_a_line_each(axes: Axes) -> None:
    draw_curves(axes, {"layer 0": [(1, 0.5), (2, 0.25)], "layer 1": [(2, 1.0)]}, "layers")
    assert [drawn.get_xydata().tolist() for drawn in axes.lines] == [
        [[1, 0.5], [2, 0.25]],
        [[2, 1.0]],
    ]
    assert len({drawn.get_color() for drawn in axes.lines}) == 2


def test_no_two_lines_look_alike() -> None:
    styles = [line_style(index, MAX_LINES) for index in range(MAX_LINES)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == MAX_LINES
    assert styles[0]["linestyle"] == "solid"
    sizes = [style["markersize"] for style in styles]
    assert sizes == sorted(sizes, reverse=True)


def test_dashes_of_later_lines_are_shorter_in_one_period() -> None:
    dashes = [line_style(index, 3)["linestyle"][1] for index in (1, 2)]
    # A period is 14 points, a line 1.8 points wide.
    assert dashes == [pytest.approx((10.5 / 1.8, 3.5 / 1.8)), pytest.approx((7 / 1.8, 7 / 1.8))]


def test_panels_that_share_names_share_colours(axes: Axes) -> None:
    draw_curves(axes, {"client 4": [(1, 0.5)]}, "clients", ["client 2", "client 4"])
    assert axes.lines[0].get_color() == line_style(1, 2)["color"]


def test_quantiles_of_those_that_have_a_point() -> None:
    curves = {"a": [(2, 1.0), (3, 4.0)], "b": [(2, 3.0)]}
    assert quantiles(curves, 0.5) == [(2, 2.0), (3, 4.0)]
    assert quantiles(curves, 1.0) == [(2, 3.0), (3, 4.0)]


def test_many_curves_become_a_median_and_a_range(axes: Axes) -> None:
    curves = {f"client {index}": [(1, float(index)), (2, 1.0)] for index in range(13)}
    draw_curves(axes, curves, "clients")
    finish_curves(axes, [plain(1), plain(2)], "title", "value")
    assert axes.lines[0].get_xydata().tolist() == [[1, 6.0], [2, 1.0]]
    assert labels(axes) == ["lowest to highest of 13 clients", "median"]
    ranges = axes.collections[0].get_segments()
    np.testing.assert_array_equal(ranges[0], [[1, 0], [1, 12]])


def test_failed_rounds_are_marked_and_explained_once(axes: Axes) -> None:
    draw_curves(axes, {"layer 0": [(1, 0.5), (4, 0.5)]}, "layers")
    finish_curves(axes, [plain(1), failed(2), failed(3), plain(4)], "title", "value")
    assert labels(axes) == ["layer 0", "failed round"]
    assert [patch.get_x() for patch in axes.patches] == [1.5, 2.5]
    assert axes.get_xlim() == (0.4, 4.6)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "value")


def test_the_axis_starts_at_zero(axes: Axes) -> None:
    draw_curves(axes, {"a": [(1, 2.0)]}, "layers")
    start_at_zero(axes)
    assert axes.get_ylim() == pytest.approx((0, 2.12))


def test_zeros_alone_leave_an_axis(axes: Axes) -> None:
    draw_curves(axes, {"a": [(1, 0.0)]}, "layers")
    start_at_zero(axes)
    assert axes.get_ylim() == (0, 1)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ((0.1, 0.3), (0.09, 0.31)),  # a twentieth of the range on either side
        ((0.2, 0.2002), (0.190095, 0.210105)),  # 5 % of the middle, where the range is less
        ((0.0, 0.0), (0.0, 1.0)),
    ],
)
def test_the_axis_follows_the_data_but_not_rounding(
    axes: Axes, values: tuple[float, float], limits: tuple[float, float]
) -> None:
    draw_curves(axes, {"a": list(enumerate(values))}, "clients")
    follow_data(axes, 0.05)
    assert axes.get_ylim() == pytest.approx(limits)
