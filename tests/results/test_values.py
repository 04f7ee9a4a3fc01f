import numpy as np
import pytest

from fedmoe_app.results.values import (
    by_number,
    client_curves,
    client_names,
    diagnostic,
    diagnostic_curves,
    mean,
    to_array,
)
from tests.report.lines import Line

NAN = np.nan


def line(number: int, **diagnostics: object) -> Line:
    return {"round": number, "clients": [], "diagnostics": diagnostics}


def test_null_becomes_nan_also_in_place_of_a_list() -> None:
    expected = [[[1.0, NAN], [NAN, NAN]], [[NAN, NAN], [3.0, 4.0]]]
    np.testing.assert_array_equal(to_array([[[1, None], None], [None, [3, 4]]]), expected)
    assert to_array([[None, None]]).shape == (1, 2)
    assert np.isnan(to_array(None))


def test_a_round_without_a_number_has_no_diagnostic() -> None:
    assert diagnostic({"round": 1}, "kappa") is None
    assert diagnostic({"round": 1, "diagnostics": None}, "kappa") is None
    assert diagnostic(line(1, kappa=[[None, None]]), "kappa") is None
    assert diagnostic(line(1, kappa=[]), "kappa") is None


def test_the_mean_is_over_finite_values() -> None:
    values = np.array([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(mean(values, axis=1), [2.0, NAN])


def test_a_curve_a_layer_leaves_out_rounds_without_numbers() -> None:
    lines = [line(1, kappa=[[1, 3], [None, None]]), line(2), line(3, kappa=[[5, None], [7, 8]])]
    assert diagnostic_curves(lines, "kappa") == {
        "layer 0": [(1, 2.0), (3, 5.0)],
        "layer 1": [(3, 7.5)],
    }


def test_a_curve_a_client_follows_it_where_rounds_have_others() -> None:
    first, second = [{"client": 10}, {"client": 2}], [{"client": 10}]
    lines = [
        line(1, alpha=[[0.2, 0.1], [0.4, 0.3]]) | {"clients": first},
        line(2),
        line(3, alpha=[[0.5], [0.7]]) | {"clients": second},
    ]
    curves = client_curves(lines, "alpha")
    assert list(curves) == ["client 2", "client 10"]
    assert curves["client 2"] == [(1, pytest.approx(0.2))]
    assert curves["client 10"] == [(1, pytest.approx(0.3)), (3, pytest.approx(0.6))]


def test_curves_are_sorted_by_number_not_by_letter() -> None:
    assert list(by_number({"client 10": [], "client 9": []})) == ["client 9", "client 10"]


def test_clients_without_names_are_counted() -> None:
    clients = [{"client": 4}, {"client": 7}]
    assert client_names({"clients": clients}, 2) == ["4", "7"]
    assert client_names({"clients": clients}, 3) == ["0", "1", "2"]
