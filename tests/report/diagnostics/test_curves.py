import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.curves import draw_curves, finish_curves, start_at_zero
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
