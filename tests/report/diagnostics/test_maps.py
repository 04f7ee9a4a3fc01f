import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.maps import (
    Scale,
    draw_layers,
    draw_map,
    draw_scale,
    evenly,
    percent,
    thinning,
    top_of,
)

SCALE = Scale(Normalize(0, 1), "share", number="{:.0f}", times=100, ticks=percent)


def test_layers_are_picked_evenly_with_both_ends() -> None:
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(16, 4) == [0, 5, 10, 15]
    assert evenly(27, 8)[-1] == 26
    assert len(evenly(27, 8)) == 8
    assert evenly(0, 8) == []


def test_labels_are_thinned() -> None:
    assert [thinning(count, 25) for count in (25, 26, 100, 2500)] == [1, 2, 4, 100]


def test_the_top_of_a_scale_is_not_set_by_an_outlier() -> None:
    assert top_of(np.array([0.1, 0.4, np.nan]), 0.2) == 0.4
    assert top_of(np.array([0.1]), 0.2) == 0.2
    assert top_of(np.array([np.nan]), 0.2) == 0.2
    assert top_of(np.array([*np.zeros(999), 5.0]), 0.2) == 0.2


def test_numbers_stand_in_the_cells_that_have_one() -> None:
    axes = Figure().subplots()
    draw_map(axes, np.array([[0.25, np.nan], [1.0, 0.0]]), ["3", "5"], SCALE)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "25", (0, 1): "100", (1, 1): "0"}
    # Black on the light end of the colours, white on the dark one.
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert (colours["100"], colours["0"]) == ("black", "white")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "5"]


def test_large_maps_have_no_numbers_and_fewer_labels() -> None:
    axes = Figure().subplots()
    draw_map(axes, np.zeros((100, 64)), [str(index) for index in range(100)], SCALE)
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["0", "4", "8"]
    assert axes.get_xticks()[:3].tolist() == [0, 4, 8]


def test_the_colour_bar_says_when_values_lie_beyond_it() -> None:
    for value, extend in ((1.0, "neither"), (1.0 + 1e-9, "neither"), (1.1, "max"), (-0.1, "min")):
        figure = Figure()
        axes = figure.subplots()
        image = draw_map(axes, np.array([[value]]), ["0"], SCALE)
        draw_scale(figure, image, axes, SCALE)
        assert image.colorbar is not None
        assert image.colorbar.extend == extend


def test_a_panel_a_layer_and_a_remark_on_those_left_out() -> None:
    figure = Figure(layout="constrained")
    remark = draw_layers(figure, np.zeros((16, 2, 3)), ["0", "1"], SCALE)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"MoE layer {layer}" for layer in (0, 2, 4, 6, 9, 11, 13, 15)]
    assert remark == "; 8 of 16 layers shown"


def test_all_layers_need_no_remark() -> None:
    figure = Figure(layout="constrained")
    assert draw_layers(figure, np.zeros((5, 2, 3)), ["0", "1"], SCALE) == ""
    assert len([axes for axes in figure.axes if axes.get_title()]) == 5


def test_percentages_have_no_needless_digits() -> None:
    assert [percent(share) for share in (0, 0.025, 0.5, 1)] == ["0%", "2.5%", "50%", "100%"]
