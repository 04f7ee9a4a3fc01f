from pathlib import Path

import pytest

from fedmoe_app.compare.plots import draw_curves, draw_final, plot_comparison
from fedmoe_app.compare.summary import results_of
from tests.compare.fakes import broken, example, lines, plan_and_outcomes


def test_a_panel_a_partition_and_a_line_a_scheme() -> None:
    plan, outcomes = example()
    figure = draw_curves(plan, results_of(plan, outcomes), "accuracy")
    assert [axes.get_title() for axes in figure.axes] == ["iid", "dirichlet 0.1"]
    shown = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(shown) == ["centralised, mean", "fedavg", "fedprox"]
    assert list(shown["fedavg"].get_ydata()) == pytest.approx([0.1, 0.5, 0.65])
    assert len(figure.axes[0].collections) == 2  # bands
    # FedProx has one seed here: a line without a band.
    assert len(figure.axes[1].collections) == 1


def test_the_final_plot_has_a_row_of_panels_a_partition() -> None:
    plan, outcomes = example()
    figure = draw_final(plan, results_of(plan, outcomes), "accuracy")
    assert len(figure.axes) == 4
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["fedavg", "fedprox"]


def test_a_run_without_a_final_accuracy_is_in_no_curve() -> None:
    plan, outcomes = broken()
    drawn = draw_curves(plan, results_of(plan, outcomes), "accuracy").axes[0].lines[0]
    assert list(drawn.get_ydata()) == pytest.approx([0.1, 0.5, 0.7])


def test_ten_schemes_differ_in_colour_or_marker() -> None:
    runs = {(f"scheme-{i}", "iid", 1): lines(0.1, 0.2) for i in range(10)}
    plan, outcomes = plan_and_outcomes({**runs})
    drawn = draw_curves(plan, results_of(plan, outcomes), "accuracy").axes[0].lines
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}
    assert len(looks) == 10


@pytest.mark.parametrize("failed", [False, True])
def test_plots_are_drawn_whatever_is_missing(tmp_path: Path, failed: bool) -> None:
    plan, outcomes = example()
    if failed:
        plan, outcomes = plan_and_outcomes(
            {("fedavg", "iid", 1): "ValueError: no", ("fedprox", "iid", 1): lines(None, None)}
        )
    paths = plot_comparison(tmp_path, plan, results_of(plan, outcomes), "accuracy")
    assert [path.name for path in paths] == ["accuracy.png", "final.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(list(tmp_path.iterdir())) == 2
