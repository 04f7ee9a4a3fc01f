import numpy as np
import pytest

from fedmoe_app.report.diagnostics.weights import draw_weights, relative_weights, weight_norm
from tests.report.diagnostics.lines import Line, failed, plain, run, start

NAN = np.nan


def line(number: int, weights: object) -> Line:
    return plain(number, clients=3) | {"diagnostics": {"expert_weights": weights}}


def test_weights_stand_in_relation_to_equal_ones() -> None:
    # Expert 0 by three clients, expert 1 by two, expert 2 by one, expert 3 by nobody.
    weights = [[[0.5, 0.25, 0.25], [NAN, 0.9, 0.1], [1, NAN, NAN], [NAN, NAN, NAN]]]
    expected = [[[1.5, NAN, 1, NAN], [0.75, 1.8, NAN, NAN], [0.75, 0.2, NAN, NAN]]]
    np.testing.assert_allclose(relative_weights(np.array(weights)), expected)


def test_the_last_weights_are_drawn_around_one() -> None:
    lines = [start(), line(1, [[[1, 0, 0]]]), line(2, [[[0.5, 0.5, None], None]]), failed(3)]
    figure = draw_weights(lines)
    assert figure is not None
    assert figure.get_suptitle() == "expert weights in round 2; hatched: not trained"
    image = figure.axes[0].images[0]
    shown = np.ma.filled(image.get_array(), -1).tolist()
    assert shown == [[1, -1], [1, -1], [-1, -1]]
    # Equal weight is the middle of the colours, 5 % less and more their ends.
    assert [float(image.norm(value)) for value in (0.95, 1, 1.05)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(
    ("ratios", "ends"),
    [
        ([1.001, 0.999, NAN], (0.95, 1.05)),  # rounding does not look like structure
        ([0.9, 1.04], (0.9, 1.1)),
        ([0.25, 4.0], (0.0, 4.0)),
    ],
)
def test_the_scale_follows_the_weights(ratios: list[float], ends: tuple[float, float]) -> None:
    norm = weight_norm(np.array(ratios))
    assert (norm.vmin, norm.vcenter, norm.vmax) == pytest.approx((ends[0], 1, ends[1]))


def test_weights_have_two_decimals() -> None:
    # Of three clients, as FedAlign-MoE gives them.
    figure = draw_weights([line(1, [[[0.318, 0.335, 0.347]]])])
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.95", "1.01", "1.04"]


def test_many_layers_are_cut_down_with_a_word() -> None:
    figure = draw_weights(run(1, 40, 16, 64, untrained=0.1, matrices=False))
    assert figure is not None
    title = "expert weights in round 1; 8 of 16 layers shown; hatched: not trained"
    assert figure.get_suptitle() == title


def test_no_weights_no_picture() -> None:
    assert draw_weights([start(), plain(1)]) is None
