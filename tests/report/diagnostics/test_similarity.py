import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.similarity import (
    draw_similarity,
    fixed_threshold,
    threshold_curves,
)
from tests.report.diagnostics.lines import Line, failed, plain, run, start


def drawn(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return [axes for axes in figure.axes if axes.get_title()]


def line(number: int, **diagnostics: object) -> Line:
    clients = [{"client": 3}, {"client": 5}]
    return plain(number) | {"clients": clients, "diagnostics": diagnostics}


def test_means_threshold_and_matrices() -> None:
    pair = [[1.0, -0.5], [-0.5, 1.0]]
    lines = [
        start(),
        line(1, similarity_mean=[[0.5, 0.1]], agreement_mean=[[0.2, None]], threshold=[[0.4, 0]]),
        failed(2),
        line(
            3,
            similarity_mean=[[-0.5, None]],
            agreement_mean=[[0.5, None]],
            threshold=[[-0.5, None]],
            similarity=[[pair, None]],
            agreement=[[[[1.0, 0.5], [0.5, 1.0]], None]],
        ),
    ]
    s_curves, d_curves, s_matrix, d_matrix = drawn(draw_similarity(lines))
    assert s_curves.get_title() == (
        "S, similarity of the regions, mean over experts\n"
        "S leaves out i = j; the mean and the deviation in τ include it"
    )
    assert s_curves.get_ylabel() == "S, mean over pairs i ≠ j"
    points = {str(each.get_label()): each.get_xydata().tolist() for each in s_curves.lines}
    assert points["layer 0"] == [[1, 0.3], [3, -0.5]]
    assert d_curves.lines[0].get_xydata().tolist() == [[1, 0.2], [3, 0.5]]
    assert s_matrix.get_title() == "S, layer 0, expert 0"
    image = s_matrix.images[0]
    assert image.get_array().tolist() == pair
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    assert [label.get_text() for label in s_matrix.get_xticklabels()] == ["3", "5"]
    assert [text.get_text() for text in d_matrix.texts] == ["1.00", "0.50", "0.50", "1.00"]


def test_the_threshold_counts_the_experts_that_have_pairs() -> None:
    lines = [
        line(1, similarity_mean=[[0.5, None], [0.1, 0.3]], threshold=[[0.4, 1.0], [0.2, 0.4]]),
        line(2, threshold=[[0.4, 1.0], [0.2, 0.4]]),
    ]
    assert threshold_curves(lines) == {
        "layer 0": [(1, 0.4)],
        "layer 1": [(1, pytest.approx(0.3))],
    }


def test_a_threshold_a_layer_in_its_colour() -> None:
    lines = [line(1, similarity_mean=[[0.5], [0.25]], threshold=[[0.125], [0.0]])]
    s_curves = drawn(draw_similarity(lines))[0]
    dotted = [each for each in s_curves.lines if each.get_linestyle() == ":"]
    assert [each.get_xydata().tolist() for each in dotted] == [[[1, 0.125]], [[1, 0.0]], []]
    assert [each.get_color() for each in dotted[:2]] == [
        each.get_color() for each in s_curves.lines[:2]
    ]
    assert [text.get_text() for text in s_curves.get_legend().get_texts()] == [
        "layer 0", "layer 1", "threshold τ of the layer",
    ]  # fmt: skip


def test_a_given_threshold_is_one_line() -> None:
    lines = [line(1, similarity_mean=[[0.5, 0.1]], threshold=[[0.5, 0.5]])]
    assert fixed_threshold(lines) == 0.5
    s_curves = drawn(draw_similarity(lines))[0]
    assert s_curves.get_title() == "S, similarity of the regions, mean over experts"
    labels = [text.get_text() for text in s_curves.get_legend().get_texts()]
    assert labels == ["layer 0", "threshold τ, fixed"]


def test_a_threshold_alone_or_two_that_differ_are_not_given() -> None:
    assert fixed_threshold([line(1, threshold=[[0.5]])]) is None
    assert fixed_threshold([line(1, threshold=[[0.5, 0.25]])]) is None
    assert fixed_threshold([line(1)]) is None


def test_many_layers_have_the_median_threshold() -> None:
    similarity = [[0.5]] * 13
    threshold = [[0.0]] * 6 + [[0.25]] + [[1.0]] * 6
    s_curves = drawn(draw_similarity([line(1, similarity_mean=similarity, threshold=threshold)]))[0]
    dotted = [each for each in s_curves.lines if each.get_linestyle() == ":"]
    assert [each.get_xydata().tolist() for each in dotted] == [[[1, 0.25]]]
    assert dotted[0].get_label() == "threshold τ, median"


def test_matrices_of_the_first_and_the_last_layer_and_four_experts() -> None:
    figure = draw_similarity(run(2, 5, 3, 8))
    titles = [axes.get_title() for axes in drawn(figure) if axes.images]
    expected = [
        f"{name}, layer {layer}, expert {expert}"
        for layer in (0, 2)
        for name in "SD"
        for expert in range(4)
    ]
    assert titles == expected
    assert figure is not None
    title = "pairs of clients in round 2, experts that most clients trained"
    assert figure.subfigs[1].get_suptitle() == title


def test_without_matrices_there_are_curves_alone() -> None:
    axes = drawn(draw_similarity(run(2, 40, 2, 8, matrices=False)))
    assert len(axes) == 2
    assert not any(each.images for each in axes)


def test_no_pair_no_picture() -> None:
    assert draw_similarity(run(1, 1, 1, 4)) is None
    assert draw_similarity([start(), failed(1)]) is None
