import math

import numpy as np
import pytest

from fedmoe_app.report.diagnostics.consistency import draw_consistency, relative_entropy_curves
from tests.report.diagnostics.lines import Line, failed, plain, run, start

HALF = -2 * 0.5 * math.log(0.5)


def line(number: int, numbers: list[int], **diagnostics: object) -> Line:
    clients = [{"client": number} for number in numbers]
    return plain(number) | {"clients": clients, "diagnostics": diagnostics}


def test_entropy_stands_in_relation_to_equal_weights() -> None:
    # Expert 0: equal weights, expert 1: one client has all, expert 2: nobody gives it anything.
    omega = [[[0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]]
    lines = [line(1, [0, 1], omega=omega, omega_entropy=[[HALF, 0.0, 0.0]])]
    assert relative_entropy_curves(lines) == {"layer 0": [(1, pytest.approx(0.5))]}


def test_one_client_has_no_relative_entropy() -> None:
    assert relative_entropy_curves([line(1, [0], omega=[[[1.0]]], omega_entropy=[[0.0]])]) == {}


def test_weights_above_and_rounds_below() -> None:
    lines = run(3, 4, 2, 8)
    figure = draw_consistency([*lines, failed(4)])
    assert figure is not None
    above, below = figure.subfigs
    assert above.get_suptitle() == "consistency weights ω in round 3; equal weights: 1/4 = 25%"
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_allclose(images, lines[-1]["diagnostics"]["omega"])
    # Columns of ω sum to 1.
    np.testing.assert_allclose(np.sum(images, axis=1), 1)
    lined = [axes for axes in below.axes if axes.lines]
    assert [axes.get_title() for axes in lined] == [
        "entropy of ω, mean over experts",
        "distance of each client's routing to the reference",
    ]
    assert [len(axes.lines) for axes in lined] == [2, 4]


def test_one_client_leaves_out_the_entropy() -> None:
    figure = draw_consistency(run(1, 1, 1, 4))
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.lines]
    assert titles == ["distance of each client's routing to the reference"]
    image = next(axes.images[0] for axes in figure.axes if axes.images)
    assert image.norm.vmax == 1


def test_many_layers_and_clients_are_cut_down_with_a_word() -> None:
    figure = draw_consistency(run(1, 40, 16, 64, matrices=False))
    assert figure is not None
    assert figure.subfigs[0].get_suptitle().endswith("; 8 of 16 layers shown")
    assert len([axes for axes in figure.axes if axes.images]) == 8


def test_no_weights_no_picture() -> None:
    assert draw_consistency([start(), plain(1)]) is None
