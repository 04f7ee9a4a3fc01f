import numpy as np
import pytest
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.pairs import (
    draw_pairs,
    last_pairs,
    most_trained,
    pair_scale,
    pairs_height,
)
from tests.report.diagnostics.lines import Line, failed, plain, run, start

NAN = np.nan


def line(similarity: object, agreement: object) -> Line:
    return plain(1) | {"diagnostics": {"similarity": similarity, "agreement": agreement}}


def draw(lines: list[Line]) -> Figure:
    pairs = last_pairs(lines)
    assert pairs is not None
    figure = Figure(figsize=(10, pairs_height(pairs)), layout="constrained")
    draw_pairs(figure.subfigures(), pairs)
    return figure


def test_experts_with_most_clients_come_first() -> None:
    both, one, none = np.eye(2), np.array([[1.0, NAN], [NAN, NAN]]), np.full((2, 2), NAN)
    matrices = np.stack([one, both, none, both, both])
    assert most_trained(matrices, 4) == [1, 3, 4]
    assert most_trained(matrices, 2) == [1, 3]


@pytest.mark.parametrize(
    ("pair", "end"), [(0.001, 0.05), (NAN, 0.05), (-0.2, 0.2), (0.6, 1.0), (-1.0, 1.0)]
)
def test_the_diagonal_does_not_set_the_scale(pair: float, end: float) -> None:
    scale = pair_scale("D", np.array([[[1.0, pair], [pair, 1.0]]]))
    assert (scale.norm.vmin, scale.norm.vmax) == (-end, end)


def test_small_agreements_have_colours_and_decimals_of_their_own() -> None:
    near, far = [[1.0, 0.012], [0.012, 1.0]], [[1.0, -0.75], [-0.75, 1.0]]
    figure = draw([line([[far]], [[near]])])
    s_matrix, d_matrix = (axes for axes in figure.axes if axes.images)
    assert [text.get_text() for text in s_matrix.texts] == ["1.00", "-0.75", "-0.75", "1.00"]
    assert [text.get_text() for text in d_matrix.texts] == ["1.000", "0.012", "0.012", "1.000"]
    assert s_matrix.images[0].norm.vmax == 1
    assert d_matrix.images[0].norm.vmax == 0.05
    bars = [axes.get_ylabel() for axes in figure.axes if "cosine" in axes.get_ylabel()]
    assert bars == ["S, cosine (i = j: 1)", "D, cosine (i = j: 1)"]
    # The diagonal lies above the scale of D.
    bar = d_matrix.images[0].colorbar
    assert bar is not None
    assert bar.extend == "max"


def test_clients_that_did_not_train_are_explained() -> None:
    figure = draw(run(1, 5, 1, 4, untrained=0.5))
    assert figure.subfigs[0].get_suptitle().endswith("; hatched: not trained")


def test_no_pair_of_clients_no_matrices() -> None:
    assert last_pairs(run(2, 1, 1, 4)) is None
    assert last_pairs([start(), failed(1)]) is None
