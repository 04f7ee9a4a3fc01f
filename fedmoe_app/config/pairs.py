"""``key=value`` pairs of a command line: read strictly, and written so that a shell takes them.

What is written is a superset of Flower's ``--run-config``: values of TOML, strings in single or
double quotes. Lists are read here, too; Flower has none (:mod:`fedmoe_app.config.config_file`
turns them into text).
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from typing import Any

Value = bool | int | float | str | list[Any]
Pairs = dict[str, Value]

_BASIC, _LITERAL = r'"(?:[^"\\]|\\.)*"', r"'[^']*'"
_LIST = rf"\[(?:[^\[\]\"']|{_BASIC}|{_LITERAL})*\]"
_PAIR = re.compile(rf"\s*([^\s=]+)=({_BASIC}|{_LITERAL}|{_LIST}|\S+)(?=\s|$)", re.DOTALL)
# Inside "..." a shell reads these; a backslash before anything else stays as it is.
_READ_BY_SHELL = re.compile(r'[$`"!\n]|\\[\\$`"\n]|\\$')


class Unreadable(ValueError):
    """A word that is no pair.

    Attributes:
        key: of the pair; empty where none could be found.
        text: what cannot be read: the value, or the word where a pair should begin.
        is_other: whether it is a value of TOML, but one of another kind: a date, a table.
    """

    def __init__(self, key: str, text: str, is_other: bool = False) -> None:
        super().__init__(key, text)
        self.key, self.text, self.is_other = key, text, is_other


def read_pairs(item: str) -> Pairs:
    """Read one item of ``--run-config``, such as ``'data.alpha=0.1 scheme="fedmoe"'``.

    Raises:
        Unreadable: naming the first word that is no pair, or whose value is none of TOML.
    """
    pairs: Pairs = {}
    position = 0
    while item[position:].strip():
        found = _PAIR.match(item, position)
        if found is None:
            raise Unreadable("", item[position:].split()[0])
        pairs[found[1]] = read_value(found[1], found[2])
        position = found.end()
    return pairs


def read_value(key: str, text: str) -> Value:
    """Read a value as TOML does; raises as :func:`read_pairs`."""
    if "#" in text and text[0] not in "\"'[":
        raise Unreadable(key, text)  # a comment for TOML, which would drop the rest
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        raise Unreadable(key, text) from None
    value = table["value"]
    if len(table) > 1 or not isinstance(value, bool | int | float | str | list):
        raise Unreadable(key, text, is_other=True)
    return value


def to_type(pairs: Mapping[str, Value]) -> str | None:
    """Return the option with these pairs as it is typed in a shell: ``-c 'seed=1'``.

    The shortest of the ways to write it; None where none would be read as just these pairs.
    """
    ways = [_typed(pairs, literal) for literal in (True, False)]
    return min(filter(None, ways), key=len, default=None)


def _typed(pairs: Mapping[str, Value], literal: bool) -> str | None:
    item = " ".join(f"{key}={write_value(value, literal)}" for key, value in pairs.items())
    typed = f"-c {_quoted(item)}"
    try:
        exact = shlex.split(typed) == ["-c", item] and _same(read_pairs(item), pairs)
    except ValueError:  # Unreadable is one, too
        return None
    return typed if exact else None


def write_value(value: Value, literal: bool = True) -> str:
    """Return a value as TOML writes it.

    Args:
        value: of a key.
        literal: whether text with a backslash or quotation mark may stand in single quotes, where
            nothing is escaped.
    """
    if isinstance(value, list):
        return f"[{', '.join(_escaped(each) for each in value)}]"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if value.isprintable() and not set(value) & {'"', "\\"}:
        return f'"{value}"'
    literal = literal and value.isprintable() and "'" not in value
    return f"'{value}'" if literal else _escaped(value)


def _escaped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def _quoted(item: str) -> str:
    """Quote one word for a shell; double quotes, where they do, are easier to read."""
    if "'" in item and not _READ_BY_SHELL.search(item):
        return f'"{item}"'
    return shlex.quote(item)


def _same(read: Mapping[str, Value], wanted: Mapping[str, Value]) -> bool:
    """Compare types, too: for Python 1 and True are equal."""
    return read == wanted and all(type(read[key]) is type(wanted[key]) for key in wanted)
