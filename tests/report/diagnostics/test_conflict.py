import numpy as np

from fedmoe_app.report.diagnostics.conflict import draw_conflict
from tests.report.diagnostics.lines import Line, failed, plain, run, start


def line(number: int, **diagnostics: object) -> Line:
    return plain(number) | {"diagnostics": diagnostics}


def test_curves_and_the_last_map_of_conflict_and_kappa() -> None:
    lines = [
        start(),
        line(1, conflict=[[0.5, 0.0]], kappa=[[0.2, 0.0]]),
        failed(2),
        line(3, conflict=[[0.25, None]], kappa=[[0.1, None]]),
        plain(4),
    ]
    figure = draw_conflict(lines)
    assert figure is not None
    curves = [axes.lines[0].get_xydata().tolist() for axes in figure.axes if axes.lines]
    assert curves == [[[1, 0.25], [3, 0.25]], [[1, 0.1], [3, 0.1]]]
    maps = [np.ma.filled(axes.images[0].get_array(), -1) for axes in figure.axes if axes.images]
    assert [each.tolist() for each in maps] == [[[0.25, -1]], [[0.1, -1]]]
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles[0] == "conflicting updates in round 3; hatched: nobody trained it"


def test_without_kappa_there_is_one_column() -> None:
    figure = draw_conflict([start(), line(1, conflict=[[0.5, 0.0], [0.0, 1.0]])])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "conflicting updates, mean over experts\n"
        "share of members whose change has a negative dot product\n"
        "with the combined change, which contains their own",
        "conflicting updates in round 1",
    ]
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == [
        "50", "0", "0", "100",
    ]  # fmt: skip


def test_layers_without_conflict_do_not_hide_each_other() -> None:
    figure = draw_conflict([line(number, conflict=[[0.0], [0.0]]) for number in (1, 2)])
    assert figure is not None
    first, second = next(axes.lines for axes in figure.axes if axes.lines)
    assert first.get_xydata().tolist() == second.get_xydata().tolist()
    # What is drawn first is larger, and the dashes of the second let it show through.
    assert first.get_markersize() > second.get_markersize()
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")


def test_small_gains_are_written_with_decimals() -> None:
    for kappa, text in ((0.0014, "0.14"), (0.25, "25"), (-0.0, "0.00")):
        figure = draw_conflict([line(1, conflict=[[0.5]], kappa=[[kappa]])])
        assert figure is not None
        texts = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
        assert texts == ["50", text]


def test_many_layers_become_a_band() -> None:
    figure = draw_conflict(run(3, 4, 16, 64, matrices=False))
    assert figure is not None
    above = [axes for axes in figure.axes if axes.lines]
    labels = [text.get_text() for text in above[0].get_legend().get_texts()]
    assert labels == ["lowest to highest of 16 layers", "median"]
    shapes = [axes.images[0].get_array().shape for axes in figure.axes if axes.images]
    assert shapes == [(16, 64), (16, 64)]


def test_no_conflict_no_picture() -> None:
    assert draw_conflict([start(), failed(1), line(2, conflict=[[None]])]) is None
