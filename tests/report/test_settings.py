"""Which settings a page says were set differently."""

from __future__ import annotations

from fedmoe_app.report.settings import compare, is_notable

DEFAULT = {"seed": 42, "round-timeout": 3600, "diagnostics": True, "resume": ""}


def notable(**changes: object) -> list[str]:
    settings = compare(DEFAULT | changes, DEFAULT)
    return [each.key for each in settings if is_notable(each)]


def test_a_number_is_the_same_with_and_without_a_point() -> None:
    assert notable(**{"round-timeout": 3600.0}) == []
    assert notable(**{"round-timeout": 3600.5}) == ["round-timeout"]


def test_where_a_run_lies_and_goes_on_is_no_setting_of_it() -> None:
    assert notable(resume="/a/run", seed=43) == ["seed"]


def test_true_is_not_one() -> None:
    assert notable(diagnostics=1) == ["diagnostics"]
