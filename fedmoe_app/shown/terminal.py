"""The terminal: no text is markup, emoji code or escape sequence."""

from __future__ import annotations

import shlex
import sys
from typing import IO, Any

import rich.console
import rich.table
from rich.console import RenderableType
from rich.text import Text

from fedmoe_app.shown.text import visible, visible_lines, without_colours


class Console(rich.console.Console):
    """rich's console, for which every string is plain text; styles come with ``Text``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string renderable."""
        return super().render_str(visible_lines(text), **options)


class Table(rich.table.Table):
    """rich's table, whose titles, headers and cells are plain text on any console."""

    def __init__(self, *headers: str, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else literal(title), **options)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(_plain(header), *rest, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(None if cell is None else _plain(cell) for cell in cells), **options)


def literal(text: object, style: str = "", **options: Any) -> Text:
    """Return text for rich that is shown as it is; its line ends count."""
    return Text(visible_lines(text), style=style, **options)


def say(line: object = "", file: IO[str] | None = None) -> None:
    """Print one line, at once."""
    print(visible(line), file=file, flush=True)


def say_part(text: object, file: IO[str] | None = None) -> None:
    """Print a part of a text, at once; line ends count, and none is added."""
    print(visible_lines(text), end="", file=file, flush=True)


def say_lines(text: object, file: IO[str] | None = None) -> None:
    """Print a text of this app's own that has several lines; names in it went through others."""
    print(visible_lines(text), file=file, flush=True)


def say_output(line: str, file: IO[str] | None = None) -> None:
    """Print one line that another process printed."""
    say(without_colours(line), file)


def say_whatever_the_encoding() -> None:
    """Let both outputs write escapes for what their encoding lacks, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where another object was put in its place
            stream.reconfigure(errors="backslashreplace")


def shell_word(value: object) -> str:
    """Return a path or name as one word of a command that the reader copies."""
    text = str(value)
    if visible(text) == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_in_shell, text))}'"


def _in_shell(character: str) -> str:
    """Return a character as it stands in bash's ``$'...'``."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if visible(character) != character:
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return f"\\{character}" if character in "\\'" else character


def _plain(cell: RenderableType) -> RenderableType:
    return literal(cell) if isinstance(cell, str) else cell
