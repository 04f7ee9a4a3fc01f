"""Cubes against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedmoe_app.report.cubes import (
    ALL_ROUNDS,
    client_cube,
    evenly,
    expert_cube,
    pair_cube,
    routing_cube,
    short,
    trained_cube,
    weight_cube,
)
from tests.report.html.runs import line, with_pairs


def labels(cube: object, name: str) -> tuple[str, ...]:
    return next(axis.labels for axis in cube.axes if axis.name == name)  # type: ignore[attr-defined]


def test_routing_is_shares_with_all_clients_first() -> None:
    cube = routing_cube([line(0), line(1, (0, 2), experts=2)])
    assert cube is not None
    assert [axis.name for axis in cube.axes] == ["round", "client", "MoE layer", "expert"]
    assert labels(cube, "round") == ("1",)
    assert labels(cube, "client") == ("all clients", "0", "2")
    # Client 0 sent 0 and 1 tokens, client 2 sent 2 and 3.
    np.testing.assert_allclose(cube.values[0, :, 0], [[2 / 6, 4 / 6], [0, 1], [2 / 5, 3 / 5]])


def test_a_client_that_was_not_there_has_no_numbers() -> None:
    cube = trained_cube([line(1, (0, 10)), line(2, (2,))])
    assert cube is not None
    assert labels(cube, "client") == ("0", "2", "10")
    assert labels(cube, "round") == ("1", "2", ALL_ROUNDS)
    steps = cube.values[:, :, 0, 0]
    # In round r each client trained it in r of its 4 steps.
    none = np.nan
    np.testing.assert_array_equal(steps, [[0.25, none, 0.25], [none, 0.5, none], [0.25, 0.5, 0.25]])


def test_steps_are_shares_of_the_client_s_own_steps() -> None:
    entry = line(1, (0, 1, 2), layers=1, experts=2)
    entry["routing"]["trained"] = [[[4, 1]], [[0, 5]], [[0, 0]]]
    for each, steps in zip(entry["clients"], (4, 10, None), strict=True):
        each["num_steps"] = steps
    cube = trained_cube([entry])
    assert cube is not None
    expected = [[1.0, 0.25], [0.0, 0.5], [np.nan, np.nan]]
    np.testing.assert_array_equal(cube.values[0, :, 0], expected)
    np.testing.assert_array_equal(cube.values[1, :, 0], expected)
    for each in entry["clients"]:
        each["num_steps"] = None
    assert trained_cube([entry]) is None


def test_weights_stand_in_relation_to_equal_ones() -> None:
    # Expert 0 by three clients, expert 1 by two, expert 2 by one, expert 3 by nobody.
    none = None
    weights = [[[0.5, 0.25, 0.25], [none, 0.9, 0.1], [1, none, none], [none, none, none]]]
    cube = weight_cube([line(1, (0, 1, 2)) | {"diagnostics": {"expert_weights": weights}}])
    assert cube is not None
    nan = np.nan
    expected = [[1.5, nan, 1, nan], [0.75, 1.8, nan, nan], [0.75, 0.2, nan, nan]]
    np.testing.assert_allclose(cube.values[0, :, 0], expected)


def test_diagnostics_find_their_axes() -> None:
    conflict = [[0.5, None], [0.25, 0]]
    weights = [[[1, None], [0.5, 0.5]], [[0, 1], [None, None]]]  # [L, E, N]
    lines = [line(1) | {"diagnostics": {"conflict": conflict, "expert_weights": weights}}, line(2)]
    experts = expert_cube(lines, "conflict")
    assert experts is not None
    np.testing.assert_array_equal(experts.values, [[[0.5, np.nan], [0.25, 0]]])
    clients = client_cube(lines, "expert_weights", client_axis=2)
    assert clients is not None
    np.testing.assert_array_equal(clients.values[0, 1], [[np.nan, 0.5], [1, np.nan]])
    assert expert_cube(lines, "kappa") is None
    assert expert_cube(lines, "expert_weights") is None  # three axes, not two


def test_pairs_stand_at_their_clients() -> None:
    pairs = np.array([[1.0, 0.5], [0.5, 1.0]])[None, None]  # [1, 1, N, N]
    lines = [with_pairs(line(1, (3, 1)), pairs), with_pairs(line(2, (1, 2)), -pairs)]
    cube = pair_cube(lines, "similarity")
    assert cube is not None
    assert labels(cube, "client") == labels(cube, "other client") == ("1", "2", "3")
    none = np.nan
    np.testing.assert_array_equal(
        cube.values[:, :, :, 0, 0],
        [
            [[1, none, 0.5], [none, none, none], [0.5, none, 1]],
            [[-1, -0.5, none], [-0.5, -1, none], [none, none, none]],
        ],
    )


@pytest.mark.parametrize(("most", "rounds", "clients"), [(10**6, 20, 5), (400, 10, 5), (192, 8, 3)])
def test_what_does_not_fit_is_left_out_and_said(most: int, rounds: int, clients: int) -> None:
    lines = [line(number, tuple(range(5))) for number in range(1, 20)]  # 8 numbers a client
    cube = trained_cube(lines, most)
    assert cube is not None
    assert cube.values.size <= most
    assert cube.values.shape == (rounds, clients, 2, 4)
    assert labels(cube, "round")[0] == "1"
    assert labels(cube, "round")[-1] == ALL_ROUNDS
    assert np.all(cube.values[-1] == sum(range(1, 20)) / (4 * 19))
    said = f"{rounds - 1} of 19 rounds" in cube.remark, f"first {clients} of 5" in cube.remark
    assert said == (rounds < 20, clients < 5)


def test_pairs_of_many_rounds_are_thinned_and_said() -> None:
    pairs = np.ones((1, 1, 2, 2))
    lines = [with_pairs(line(number), number * pairs) for number in range(1, 21)]
    cube = pair_cube(lines, "similarity", most=40)
    assert cube is not None
    assert cube.values.shape == (10, 2, 2, 1, 1)
    assert cube.values[[0, -1], 0, 0, 0, 0].tolist() == [1, 20]
    assert "10 of 20 rounds" in cube.remark
    whole = pair_cube(lines, "similarity")
    assert whole is not None
    assert whole.remark == ""


def test_evenly_keeps_both_ends() -> None:
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(1000, 2) == [0, 999]


def test_json_has_null_for_nan_and_four_digits() -> None:
    assert [short(value) for value in (0.123456, 2.0, float("nan"), 123456.0)] == [
        0.1235, 2, None, 123500,
    ]  # fmt: skip
    cube = routing_cube([line(1)])
    assert cube is not None
    assert json.loads(json.dumps(cube.to_json(), allow_nan=False))["values"][:2] == [0.0625, 0.1875]
