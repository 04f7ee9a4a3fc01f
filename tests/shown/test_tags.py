"""Names in experiment trackers."""

from __future__ import annotations

import re

import pytest

from fedmoe_app.results.trackers import scalars
from fedmoe_app.shown.tags import MAX_TITLE, setting, tag, title
from tests.report.html.runs import line
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("client/3/accuracy", "client/3/accuracy"),
        ("סוג/דיוק", "סוג/דיוק"),
        ("f1/$0-$50", "f1/_24_0-_24_50"),
        ("f1/a b\n", "f1/a_20_b_a_"),
    ],
)
def test_tags_hold_what_all_trackers_take(name: str, shown: str) -> None:
    assert tag(name) == shown


def test_tags_of_other_names_are_others() -> None:
    tags = {tag(text) for text in (*HOSTILE, *ORDINARY)}
    assert len(tags) == len(HOSTILE) + len(ORDINARY)
    assert all(re.fullmatch(r"[-/\w.]*", each) for each in tags)


def test_numbers_of_a_round_go_by_their_standard_names() -> None:
    values = scalars(line(1) | {"seconds": {"round": 2.0, "a [x]\n": 1.0}})
    assert values["seconds/a_20__5b_x_5d__a_"] == 1.0
    assert values["client/0/bytes_up"] > 0


def test_titles_and_settings_are_visible_and_bounded() -> None:
    for text in HOSTILE:
        assert not ACTING.search(title(text) + setting(text))
    assert len(title("x" * 1000)) == MAX_TITLE
    assert setting(0.5) == "0.5"
