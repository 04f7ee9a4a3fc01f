"""HTML pages: Jinja escapes markup; here what acts without being markup is made visible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fedmoe_app.shown.text import visible

_KEPT = re.compile("([\n\t])")  # white space in HTML, and meant where text stands in <pre>


def html_text(value: Any) -> Any:
    """Return what a template puts in; all that is no text, or is markup already, stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(part if _KEPT.match(part) else visible(part) for part in _KEPT.split(value))


def html_data(value: Any) -> Any:
    """Return the data of a page's script with every text in it as :func:`html_text` has it."""
    if isinstance(value, str):
        return html_text(value)
    if isinstance(value, Mapping):
        return {key: html_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not _is_numbers(value):
        return [html_data(item) for item in value]
    return value


def _is_numbers(values: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether a list is one of the long ones, which hold no text."""
    return all(value is None or isinstance(value, int | float) for value in values)
