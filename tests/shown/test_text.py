"""What acts is written as its escape, everything else stays; names can be told apart."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app.shown.text import readable, shorten, tell_apart, visible, visible_lines
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY

# Few characters, those that matter, so that texts often collide.
TRICKY = st.text(alphabet="aA#1 \\nx\n\t\x1b\u00a0\u200b\u202ee\u0301é…", max_size=8)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("\u202eabc\u2069\u200e\u061c", r"\u202eabc\u2069\u200e\u061c"),
        ("a\u2028b\u2029c\ufeff", r"a\u2028b\u2029c\ufeff"),
        ("caf\udce9", r"caf\udce9"),  # a file name that is not UTF-8
        ("\U000e0041", r"\U000e0041"),
        (404, "404"),
        ("", ""),
    ],
)
def test_what_acts_becomes_an_escape(text: object, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text
    assert readable(text) == text
    assert visible_lines(f"{text}\n{text}") == f"{text}\n{text}"


@given(st.text())
def test_nothing_that_acts_is_left_and_nothing_is_dropped(text: str) -> None:
    shown = visible(text)
    assert not ACTING.search(shown)
    assert "\n" not in shown
    assert len(shown) >= len(text)
    assert visible(shown) == shown


def test_line_ends_that_are_meant_stay() -> None:
    assert visible_lines("a\r\nb\x1b\nc\rd") == "a\nb\\x1b\nc\\rd"


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefghij", 7, "abcd…ij"),
        ("abce\u0301fghij", 5, "abc…j"),
        ("abcefgh\u0301ij", 8, "abcef…ij"),
        ("xx👩\u200d👩\u200d👧yyyyyyyyy", 7, "xx…yy"),
        ("a" + "\u0301" * 50, 10, "…"),
    ],
)
def test_long_texts_lose_their_middle_between_letters(text: str, limit: int, shown: str) -> None:
    assert shorten(text, limit) == shown


@given(st.text(), st.integers(3, 40))
def test_a_shortened_text_keeps_to_its_limit(text: str, limit: int) -> None:
    shown = shorten(text, limit)
    assert len(shown) <= limit
    assert (shown == text) == (len(text) <= limit)
    head, _, tail = shown.partition("…") if len(text) > limit else (shown, "", "")
    assert text.startswith(head)
    assert text.endswith(tail)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("  ", '"  "'),
        ("\u00a0", r'"\xa0"'),
        ("\u200b", r'"\u200b"'),
        ("\u3164", r'"\u3164"'),
        (" cat", '" cat"'),
        ("cat\n", r'"cat\n"'),
        ("None", "None"),
        ("nan", "nan"),
        ("\\", "\\"),
    ],
)
def test_names_without_ink_or_with_space_at_their_ends_are_quoted(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_names_are_told_apart() -> None:
    assert tell_apart(["cat", "Cat", "CAT"], 20) == ["cat", "Cat", "CAT"]
    assert tell_apart(["\u00e9", "e\u0301"], 20) == ["\u00e9", r"e\u0301"]
    assert tell_apart(["10 €", "10\u00a0€"], 20) == ["10 €", r"10\xa0\u20ac"]
    assert tell_apart(["ab", "a\u200bb"], 20) == ["ab", r"a\u200bb"]
    assert tell_apart(["e\u0301"], 20) == ["e\u0301"]  # alone it needs no spelling
    long = "x" * 50
    assert tell_apart([long + "A", long + "B"], 10) == ["xxxxxx…xxA", "xxxxxx…xxB"]
    middle = tell_apart([f"{long}A{long}", f"{long}B{long}"], 10)
    assert middle == ["xxxxxx…xxx #1", "xxxxxx…xxx #2"]
    assert tell_apart(["same", "same"], 10) == ["same", "same"]
    assert tell_apart([], 10) == []


@given(st.lists(TRICKY, max_size=6), st.integers(3, 12))
def test_other_names_never_look_the_same(values: list[str], limit: int) -> None:
    shown = tell_apart(values, limit)
    looks = [unicodedata.normalize("NFC", " ".join(text.split())) for text in shown]
    assert len(set(looks)) == len(set(values))
    assert not any(ACTING.search(text) for text in shown)


def test_hostile_names_stand_in_one_line_each() -> None:
    for text in tell_apart(HOSTILE, 200):
        assert not ACTING.search(text)
        assert not set("\n\t") & set(text)
