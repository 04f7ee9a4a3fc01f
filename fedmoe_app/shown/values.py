"""Values of a stranger, or long ones, made fit for a message: short, one line, nothing to obey."""

from __future__ import annotations

from typing import Any

_MAX_ITEMS = 9


def shown(value: Any, limit: int = 60) -> str:
    """Show a value, at most ``limit`` characters of it; a huge one costs no time.

    Control characters and what else cannot be printed come as escapes, as in ``repr``.
    """
    text = _repr(value, limit)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _repr(value: Any, limit: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[: limit + 1])
    if isinstance(value, list | tuple):
        items = ", ".join(_repr(item, limit) for item in value[:_MAX_ITEMS])
        return f"[{items}{', ...' if len(value) > _MAX_ITEMS else ''}]"
    if isinstance(value, bool | int | float | None):
        return repr(value)
    return f"a {type(value).__name__}"
