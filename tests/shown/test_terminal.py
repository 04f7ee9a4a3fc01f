"""On a terminal a text is itself: no markup, no emoji code, no escape sequence."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe_app.shown.terminal import (
    Console,
    Table,
    literal,
    say,
    say_lines,
    say_output,
    say_whatever_the_encoding,
    shell_word,
)
from fedmoe_app.shown.text import visible
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY


def printed(thing: object, console: rich.console.Console) -> str:
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def plain_console() -> rich.console.Console:
    """A console of rich's own, which reads markup and emoji codes."""
    return rich.console.Console(file=io.StringIO(), width=400)


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY])
def test_titles_headers_and_cells_are_the_texts(text: str) -> None:
    for console in (plain_console(), Console(file=io.StringIO(), width=400)):
        one_line = visible(text)
        table = Table(one_line, title=one_line)
        table.add_column(one_line)
        table.add_row(one_line, one_line)
        out = printed(table, console)
        assert out.count(one_line) == 5
        assert not ACTING.search(out)


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY])
def test_strings_on_our_console_are_no_markup(text: str) -> None:
    out = printed(text, Console(file=io.StringIO(), width=400))
    assert "".join(out.split()) == "".join(literal(text).plain.split())
    assert not ACTING.search(out)


def test_styles_come_with_text_and_line_ends_of_a_cell_stay() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="standard")
    out = printed(literal("[x]\nb\x1b", "red"), console)
    assert out == "\x1b[31m[x]\x1b[0m\n\x1b[31mb\\x1b\x1b[0m\n"


def test_lines_are_printed_as_one_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\x1b[2J")
    say_lines("a\nb\x1b[2J")
    say_output("\x1b[92mINFO\x1b[0m :\tx\x1b[2J")
    say("to stderr", sys.stderr)
    captured = capsys.readouterr()
    assert captured.out == "a\\nb\\x1b[2J\na\nb\\x1b[2J\nINFO :  x\\x1b[2J\n"
    assert captured.err == "to stderr\n"


def test_what_the_encoding_lacks_is_written_as_its_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding="latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        say_whatever_the_encoding()
        say("é 中")
    assert (tmp_path / "out").read_bytes() == b"\xe9 \\u4e2d\n"


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/a/b-1.5", "/a/b-1.5"),
        ("/a/[x] $y$", "'/a/[x] $y$'"),
        ("/a/שלום", "'/a/שלום'"),
        ("/a/b\x1b\\c'd", r"$'/a/b\u001b\\c\'d'"),
        ("/a/\udce9", r"$'/a/\xe9'"),
    ],
)
def test_a_path_is_one_word_of_a_command(path: str, word: str) -> None:
    assert shell_word(path) == word


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_the_shell_reads_the_word_back(text: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shell_word(text)}"],
        capture_output=True,
        env={"LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert done.stdout.decode() == text
