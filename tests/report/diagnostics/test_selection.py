import numpy as np

from fedmoe_app.report.diagnostics.selection import draw_selection, ratio_curves, trained_shares
from tests.report.diagnostics.lines import Line, failed, plain, run, start


def client(number: int, steps: int | None, **more: object) -> Line:
    return {"client": number, "num_steps": steps, **more}


def line(number: int, clients: list[Line], trained: object) -> Line:
    return plain(number) | {"clients": clients, "routing": {"trained": trained}}


def test_trained_steps_are_shares_of_the_client_s_own_steps() -> None:
    clients = [client(0, 4), client(1, 10), client(2, 0), client(3, None)]
    trained = [[[4, 1]], [[0, 5]], [[0, 0]], [[0, 0]]]  # [N, L, E]
    expected = [[[1.0, 0.25], [0.0, 0.5], [np.nan, np.nan], [np.nan, np.nan]]]  # [L, N, E]
    np.testing.assert_array_equal(trained_shares(line(1, clients, trained)), expected)


def test_no_shares_without_steps_or_counts() -> None:
    assert trained_shares(plain(1)) is None
    assert trained_shares(line(1, [client(0, None)], [[[1, 2]]])) is None
    assert trained_shares(line(1, [client(0, 4)], [])) is None
    assert trained_shares(failed(1)) is None


def test_rows_name_the_budget_where_it_is_known() -> None:
    clients = [client(2, 4, expert_budget=1.0, selection_ratio=0.75), client(7, 4)]
    figure = draw_selection([start(), line(1, clients, [[[4, 0]], [[2, 2]]]), failed(2)])
    assert figure is not None
    panel, curves = (axes for axes in figure.axes if axes.get_title())
    assert [label.get_text() for label in panel.get_yticklabels()] == ["2 (1)", "7"]
    assert panel.get_ylabel() == "client (expert budget)"
    assert panel.images[0].get_array().tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert curves.lines[0].get_xydata().tolist() == [[1, 0.75]]
    assert figure.subfigs[0].get_suptitle() == "experts trained in round 1"


def test_a_budget_alone_is_drawn_without_curves() -> None:
    figure = draw_selection([line(1, [client(0, 4, expert_budget=1)], [[[4, 0], [0, 4]]])])
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["MoE layer 0", "MoE layer 1"]


def test_a_ratio_alone_is_drawn_without_panels() -> None:
    figure = draw_selection([line(1, [client(0, None, selection_ratio=0.5)], [])])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [
        "r(c), importance held by the chosen experts"
    ]


def test_gate_weights_stand_beside_the_ratios_in_the_same_colours() -> None:
    clients = [client(2, None), client(7, None, selection_ratio=0.5)]
    lines = [
        line(1, clients, []) | {"diagnostics": {"gate_weights": [[0.25, 0.75], [0.75, 0.25]]}},
        line(2, clients[:1], []) | {"diagnostics": {"gate_weights": [[0.125], [0.375]]}},
    ]
    figure = draw_selection(lines)
    assert figure is not None
    ratios, gates = figure.axes
    assert gates.get_title() == "α, weight of each client's gate"
    assert gates.get_ylabel() == "α, mean over layers"
    points = {str(each.get_label()): each.get_xydata().tolist() for each in gates.lines}
    assert points == {"client 2": [[1, 0.5], [2, 0.25]], "client 7": [[1, 0.5]]}
    assert ratios.lines[0].get_label() == "client 7"
    assert ratios.lines[0].get_color() == gates.lines[1].get_color()


def test_gate_weights_of_a_scheme_without_selection_are_drawn_alone() -> None:
    diagnostics = {"diagnostics": {"gate_weights": [[0.5, 0.5]]}}
    figure = draw_selection(
        [line(1, [client(0, 4), client(1, 4)], [[[4, 0]], [[4, 0]]]) | diagnostics]
    )
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["α, weight of each client's gate"]


def test_nobody_chose_no_picture() -> None:
    clients = [client(0, 4, expert_budget=None, selection_ratio=None)]
    assert draw_selection([start(), line(1, clients, [[[4, 0]]])]) is None
    assert draw_selection([start(), failed(1)]) is None


def test_a_ratio_a_client_over_rounds() -> None:
    curves = ratio_curves(run(3, 5, 1, 4))
    # Client 3 of the synthetic run has no budget.
    assert list(curves) == ["client 0", "client 1", "client 2", "client 4"]
    assert [number for number, _ in curves["client 4"]] == [1, 2, 3]
