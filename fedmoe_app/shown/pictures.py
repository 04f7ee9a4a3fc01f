"""Pictures: no text is mathematics, and what no font can draw is written as its code point."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from fedmoe_app.shown.fonts import can_draw, families_for
from fedmoe_app.shown.text import escape, shorten, tell_apart, visible

DOTS_PER_INCH = 130
# matplotlib cannot know that the font of another text of the same picture has it.
_NO_GLYPH = r"Glyph \d+ .*missing from font"


def picture(text: object, limit: int | None = None) -> str:
    """Return text for a title, a label or a tick of a picture.

    Args:
        text: its ``str()`` is taken.
        limit: characters at most.
    """
    shown = _drawable(str(text))
    return _literal(shown if limit is None else shorten(shown, limit))


def picture_names(values: Sequence[object], limit: int) -> list[str]:
    """Return names for the ticks of an axis, which can be told apart (:func:`text.tell_apart`)."""
    return [_literal(text) for text in tell_apart(values, limit, _drawable)]


def legend_name(shown: str) -> str:
    """Return a text of a picture as ``label``; matplotlib leaves out what begins with ``_``."""
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: Figure, path: Path) -> Path:
    """Write a picture, whose kind is the ending of ``path``, whole or not at all; return ``path``.

    Text that did not go through :func:`picture` is no mathematics, either.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        _prepare(text)
    temporary = path.with_name(f".{path.name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_GLYPH, UserWarning)
        kind = path.suffix.lstrip(".") or "png"
        figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH)
    os.replace(temporary, path)
    return path


def _drawable(text: str) -> str:
    """Return visible text with the code points of what no font can draw."""
    return "".join(c if can_draw(c) else escape(c) for c in visible(text))


def _literal(text: str) -> str:
    return text.replace("$", r"\$")


def _prepare(text: Text) -> None:
    shown = text.get_text()
    if r"\$" not in shown:
        text.set_parse_math(False)
    if others := families_for(shown):
        text.set_fontfamily([*text.get_fontfamily(), *others])
