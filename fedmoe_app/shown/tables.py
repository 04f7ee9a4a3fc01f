"""Cells of CSV, Markdown and LaTeX files: no text is a formula, a border or markup."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fedmoe_app.shown.text import visible

# What spreadsheets take for the start of a formula, forms of full width included. (Tab and carriage
# return, which some skip, are written as escapes.)
_FORMULA = re.compile("'*\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# What Markdown and GitHub's act on: escapes, links, tags, entities, emoji codes, ends of a heading;
# and marks that act in pairs, of which an underscore inside a word is none.
_PAIRED = "*_`~$"
_MARKUP = re.compile(
    r"\\(?=[!-/:-@\[-`{-~])|\](?=[(\[])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=[\w+-]+:)|^#|#$"
    r"|[*`~$]|(?<![^\W_])_|_(?![^\W_])"
)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a whole CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (columns, *rows))
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file: text that a spreadsheet would compute begins with ``'``.

    Numbers stay, also those that are text already, and so does the ``-`` of what is missing.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    is_formula = _FORMULA.match(text) and text != "-" and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def text_of_csv(cell: str) -> str:
    """Return the text of a cell that :func:`csv_cell` made; characters that it escaped stay so."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def markdown(text: object) -> str:
    """Return text for a line of a Markdown page."""
    shown = visible(text)
    alone = {mark for mark in _PAIRED if shown.count(mark) == 1}
    return _MARKUP.sub(lambda found: found[0] if found[0] in alone else f"\\{found[0]}", shown)


def markdown_cell(text: object) -> str:
    """Return text for a cell of a Markdown table."""
    return markdown(text).replace("|", r"\|")


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "±": r"$\pm$", "−": "$-$",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip


def latex(text: object) -> str:
    """Return text for LaTeX: every character that it acts on is printed as it is."""
    return "".join(_LATEX.get(character, character) for character in visible(text))
