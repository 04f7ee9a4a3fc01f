"""A line of a log is one line; JSON and TOML read back as they were."""

from __future__ import annotations

import io
import json
import logging
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app.shown.logs import (
    MAX_LINE,
    LineFormatter,
    json_line,
    log_line,
    output_line,
    toml_text,
)
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY])
def test_a_message_cannot_begin_a_line_of_its_own(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    forged = f"{text}\n12:00:00 client 3 failed: forged"
    handler.emit(logging.makeLogRecord({"msg": "client %d: %s", "args": (2, forged)}))
    handler.emit(logging.makeLogRecord({"msg": forged.replace("%", "%%")}))
    assert stream.getvalue().count("\n") == 2
    assert not ACTING.search(stream.getvalue())


def test_a_traceback_is_part_of_its_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", 40, "", 0, "failed", None, info)
    line = LineFormatter("%(message)s").format(record)
    assert line.startswith(r"failed\nTraceback")
    assert line.endswith(r"ValueError: a\nb")


def test_lines_are_bounded_and_keep_both_ends() -> None:
    line = log_line("start " + "x" * 100_000 + " end")
    assert len(line) == MAX_LINE
    assert line.startswith("start ")
    assert line.endswith(" end")


def test_output_of_another_process_loses_its_colours_only() -> None:
    assert output_line("\x1b[92mINFO \x1b[0m:\tx\x1b[2J\r\n") == "INFO :  x\\x1b[2J"


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner, max_size=3)))
def test_json_reads_back_and_acts_on_no_terminal(value: object) -> None:
    line = json_line({"key": value})
    assert json.loads(line) == {"key": value}
    assert not ACTING.search(line)
    assert "\n" not in line


def test_json_is_readable_in_any_script() -> None:
    for text in ORDINARY:
        assert json_line([text]) == f'["{text}"]'
    with pytest.raises(ValueError):
        json_line(float("nan"))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_toml_reads_back_and_acts_on_no_terminal(text: str) -> None:
    written = toml_text({"table": {"key": text}})
    assert tomllib.loads(written) == {"table": {"key": text}}
    assert not ACTING.search(written)
