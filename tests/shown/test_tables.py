"""CSV that no spreadsheet computes with, and Markdown that shows the text."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedmoe_app.shown.tables import csv_cell, csv_text, markdown, markdown_cell, text_of_csv
from fedmoe_app.shown.text import visible
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY

STARTS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-0.5, -0.5),
        (None, None),
        (float("-inf"), float("-inf")),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-.5", "-.5"),
        ("-", "-"),
        ("", ""),
        ("fedavg", "fedavg"),
        ("=1+2", "'=1+2"),
        ("-1+2", "'-1+2"),
        ("+49 30 1", "'+49 30 1"),
        ("-inf", "'-inf"),
        ("@SUM(1)", "'@SUM(1)"),
        (" =1", "' =1"),
        ("'=1", "''=1"),
        ("'tis", "'tis"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        ("a\nb\x1b", r"a\nb\x1b"),
    ],
)
def test_only_formulas_are_quoted(value: Any, cell: Any) -> None:
    assert csv_cell(value) == cell


@given(st.text())
def test_a_cell_reads_back_and_starts_no_formula(text: str) -> None:
    ((_,), (cell,)) = csv.reader(io.StringIO(csv_text(["head"], [[text]])))
    assert text_of_csv(cell) == visible(text)
    number = cell.lstrip("+-").replace(".", "").replace("e", "").replace("E", "")
    assert not cell.lstrip().startswith(STARTS) or cell == "-" or number[:1].isdigit()


def test_headers_are_texts_of_users_too() -> None:
    assert csv_text(["=a", "b,c"], [[1, -2.5]]) == '\'=a,"b,c"\n1,-2.5\n'


def text_of(source: str) -> str:
    """Return the text that a reader of the Markdown page sees."""
    tokens = [child for token in READER.parse(source) for child in token.children or ()]
    assert {token.type for token in tokens} <= {"text", "text_special"}, source
    return "".join(token.content for token in tokens)


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY, "[a](b)", "![a](b)", "a\\|b", "<i>", "&lt;"])
def test_markdown_shows_the_text(text: str) -> None:
    assert not ACTING.search(markdown(text))
    assert text_of(f"failed: {markdown(text)} end") == f"failed: {visible(text)} end"
    assert text_of(f"# Comparison of {markdown(text)}") == f"Comparison of {visible(text)}"
    assert text_of(f"| a |\n| - |\n| x{markdown_cell(text)}x |") == f"ax{visible(text)}x"


@given(st.text(alphabet="ab \\`*_[]()<>|~$&#;:!1\n", max_size=12))
def test_markdown_shows_any_text(text: str) -> None:
    assert text_of(f"| a |\n| - |\n| x{markdown_cell(text)}x |") == f"ax{visible(text)}x"


@pytest.mark.parametrize("text", ["my_scheme", "fedavg (a-1)", "a*b", "[x]", "$5", "1 < 2", "~3"])
def test_ordinary_names_stay_as_they_are_in_markdown(text: str) -> None:
    assert markdown_cell(text) == text
