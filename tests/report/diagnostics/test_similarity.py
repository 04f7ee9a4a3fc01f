import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.similarity import draw_similarity, most_trained
from tests.report.diagnostics.lines import Line, failed, plain, run, start

NAN = np.nan


def drawn(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return [axes for axes in figure.axes if axes.get_title()]


def line(number: int, **diagnostics: object) -> Line:
    clients = [{"client": 3}, {"client": 5}]
    return plain(number) | {"clients": clients, "diagnostics": diagnostics}


def test_experts_with_most_clients_come_first() -> None:
    both, one, none = np.eye(2), np.array([[1.0, NAN], [NAN, NAN]]), np.full((2, 2), NAN)
    matrices = np.stack([one, both, none, both, both])
    assert most_trained(matrices, 4) == [1, 3, 4]
    assert most_trained(matrices, 2) == [1, 3]


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
    assert s_curves.get_title() == "S, similarity of the regions"
    points = {str(each.get_label()): each.get_xydata().tolist() for each in s_curves.lines}
    assert points["layer 0"] == [[1, 0.3], [3, -0.5]]
    assert points["threshold τ"] == [[1, 0.2], [3, -0.5]]
    assert d_curves.lines[0].get_xydata().tolist() == [[1, 0.2], [3, 0.5]]
    assert s_matrix.get_title() == "S, layer 0, expert 0"
    image = s_matrix.images[0]
    assert image.get_array().tolist() == pair
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    assert [label.get_text() for label in s_matrix.get_xticklabels()] == ["3", "5"]
    assert [text.get_text() for text in d_matrix.texts] == ["1.00", "0.50", "0.50", "1.00"]


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


def test_clients_that_did_not_train_are_explained() -> None:
    figure = draw_similarity(run(1, 5, 1, 4, untrained=0.5))
    assert figure is not None
    assert figure.subfigs[1].get_suptitle().endswith("; hatched: not trained")


def test_without_matrices_there_are_curves_alone() -> None:
    axes = drawn(draw_similarity(run(2, 40, 2, 8, matrices=False)))
    assert len(axes) == 2
    assert not any(each.images for each in axes)


def test_no_pair_no_picture() -> None:
    assert draw_similarity(run(1, 1, 1, 4)) is None
    assert draw_similarity([start(), failed(1)]) is None
