"""Expert budgets: numbers, shares, and everything that is neither."""

from __future__ import annotations

from typing import Any

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.node import Budget, check_budget, experts_in, parse_budgets
from tests.conftest import make_config

NO_BUDGETS: list[Any] = [0, -1, 1.5, 0.0, -0.5, "2", True, False, None, float("nan"), [2]]


@pytest.mark.parametrize("value", [1, 2, 1000, 0.5, 1.0, 1e-9])
def test_numbers_and_shares(value: Budget) -> None:
    assert check_budget(value) == value
    assert type(check_budget(value)) is type(value)


@pytest.mark.parametrize("value", NO_BUDGETS)
def test_anything_else_is_refused_with_the_two_forms(value: Any) -> None:
    with pytest.raises(ValueError) as error:
        check_budget(value)
    assert str(error.value) == (
        f"{value!r} is no expert budget: give a number of experts a layer (1, 2, ...) or a share "
        "of them, above 0 and at most 1.0"
    )


@pytest.mark.parametrize(
    ("budget", "experts", "number"),
    [
        (1, 8, 1),
        (8, 8, 8),
        (9, 8, 8),  # more than there are: all
        (0.5, 8, 4),
        (0.5, 5, 2),  # rounded down
        (0.01, 8, 1),  # but never to none
        (1.0, 8, 8),
        (0.7, 10, 7),  # 0.7·10 is 6.999… in binary
        (0.29, 100, 29),
        (1 / 3, 60, 20),
    ],
)
def test_a_budget_as_a_number_of_experts(budget: Budget, experts: int, number: int) -> None:
    assert experts_in(budget, experts) == number


def test_one_and_the_whole_share_differ() -> None:
    assert parse_budgets("1") == (1,)
    assert parse_budgets("1.0") == (1.0,)
    assert [experts_in(parse_budgets(text)[0], 16) for text in ("1", "1.0")] == [1, 16]


def test_a_list_is_read_in_order() -> None:
    assert parse_budgets(" 2,4 , 0.5,") == (2, 4, 0.5)
    assert [type(b) for b in parse_budgets("2, 0.5")] == [int, float]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "name at least one expert budget"),
        (" , ", "name at least one expert budget"),
        ("2, many", "'many' is no expert budget"),
        ("0", "0 is no expert budget"),
        ("2, 1.5", r"1\.5 is no expert budget"),
        ("nan", "nan is no expert budget"),
        ("inf", "inf is no expert budget"),
    ],
)
def test_a_wrong_list_names_its_entry(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_budgets(text)


def test_the_config_names_its_key() -> None:
    assert make_config(**{"hfedmoe.budgets": "1, 0.25"}).hfedmoe.default_budgets == (1, 0.25)
    with pytest.raises(ConfigError, match=r'hfedmoe\.budgets = "2, 0": 0 is no expert budget'):
        make_config(**{"hfedmoe.budgets": "2, 0"})
