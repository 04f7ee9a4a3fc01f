"""Lines of logs and of JSON Lines files, and TOML: no text begins a line of its own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fedmoe_app.shown.text import escape, visible, without_colours

MAX_LINE = 4000  # characters of a line of a log

# Harmless inside JSON and TOML, but not in a terminal or an editor: C1, bidi controls, separators.
_RAW = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")


class LineFormatter(logging.Formatter):
    """Formats a record as one line of bounded length, whatever its message is."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return log_line(super().format(record))


def log_line(text: object, limit: int = MAX_LINE) -> str:
    """Return a message as one line of a log."""
    return visible(text, limit)


def output_line(raw: str) -> str:
    """Return a line that another process printed, for a file that keeps all of them."""
    return log_line(without_colours(raw.rstrip("\r\n")))


def json_line(value: Any, **options: Any) -> str:
    """Return ``value`` as one line of JSON that is readable in any script.

    What acts on a terminal stands there as an escape of JSON, so that it reads back as it was.

    Args:
        value: what JSON knows.
        options: of ``json.dumps``.

    Raises:
        ValueError: for infinity or nan, unless ``allow_nan`` is given.
    """
    text = json.dumps(value, **{"ensure_ascii": False, "allow_nan": False, **options})
    return _escaped(text)


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a table as TOML, readable in any script and with escapes as in :func:`json_line`."""
    import tomli_w  # not for the nodes, which log, too

    return _escaped(tomli_w.dumps(table))


def _escaped(text: str) -> str:
    return _RAW.sub(lambda match: escape(match[0]).replace("\\x", "\\u00"), text)
