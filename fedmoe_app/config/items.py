"""One item of ``--run-config``: read, or refused with a form that works when it is typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.lists import file_names, is_path
from fedmoe_app.config.meant import LIST_KEYS, PATH_KEYS, Meant, fits, has_control, understand
from fedmoe_app.config.pairs import Pairs, Unreadable, Value, read_pairs, to_type
from fedmoe_app.config.parse import almost_key, known_keys, unknown_key

_OPTION = "--run-config"
_TABLES = frozenset(key.partition(".")[0] for key in known_keys() if "." in key)
_EXAMPLE = "give a .toml file or key=value pairs such as 'data.alpha=0.1 scheme=\"fedmoe\"'"


class _Fault(NamedTuple):
    """What is wrong with an item.

    Attributes:
        where: the option and what it was given.
        text: what is wrong.
        always: whether ``text`` is said even where the rules that the item breaks are known.
    """

    where: str
    text: str
    always: bool = False


def read_item(item: str, beside: Sequence[str] = ()) -> Pairs:
    """Read pairs; keys that are like no known one are left to the check of the whole config.

    Args:
        item: such as ``'data.alpha=0.1 scheme="fedmoe"'``.
        beside: words that stand alone on the command line: perhaps the value of a key without one.

    Raises:
        ConfigError: naming what cannot be read, why, and what to type.
    """
    try:
        pairs = read_pairs(item)
    except Unreadable as error:
        _refuse(item, _unreadable(item, error), beside)
    fault = _find_fault(pairs, item)
    # What has no advice is left to the check of the whole config, which names ranges and choices.
    if fault and (fault.always or _typed(understand(item))):
        _refuse(item, fault)
    return pairs


def _refuse(item: str, fault: _Fault, beside: Sequence[str] = ()) -> NoReturn:
    meant = understand(item, beside)
    rules = [rule for each in meant for rule in each.rules]
    typed = _typed(meant)
    parts = [fault.text] if fault.always or not rules else []
    parts += rules
    if typed or not rules:
        parts.append(f"type {typed}" if typed else _EXAMPLE)
    raise ConfigError(f"{fault.where}: {'; '.join(dict.fromkeys(parts))}")


def _typed(meant: Sequence[Meant]) -> str | None:
    """Return the option to type, if every value is sure and the option is taken as it is."""
    pairs = {each.key: each.value for each in meant if each.value is not None}
    sure = len(pairs) == len(meant) > 0 and all(_takes(*pair) for pair in pairs.items())
    typed = to_type(pairs) if sure else None
    return typed if typed and not _find_fault(pairs, shlex.split(typed)[1]) else None


def _takes(key: str, value: Value) -> bool:
    return fits(key, value) if isinstance(value, list) else known_keys()[key].takes(value)


def _unreadable(item: str, error: Unreadable) -> _Fault:
    if not error.key:
        what = f"cannot read {_shown(error.text)}"
        return _Fault(f"{_OPTION} {_shown(item)}", what, always=True)
    what = "not a number, a boolean (true, false) or a string"
    if error.is_other:
        what = "give a number, a boolean or a string"
    return _Fault(f"{_OPTION} {error.key}={error.text}", what)


def _find_fault(pairs: Mapping[str, Value], item: str) -> _Fault | None:
    """Return what is wrong with pairs that can be read."""
    for key, value in pairs.items():
        where = f"{_OPTION} {key}={value}"
        if key not in known_keys():
            if almost_key(key):
                in_table = key.partition(".")[0] in _TABLES  # else there are too many choices
                what = unknown_key(key.split(".")) if in_table else f"{key}: unknown key"
                return _Fault(_OPTION, what, always=True)
        elif isinstance(value, list) and not fits(key, value):
            return _Fault(where, list_fault(key), always=True)
        elif key in PATH_KEYS and has_control(value) and "\\" in item:
            what = "the path holds a tab, line break or the like"
            return _Fault(f"{_OPTION} {_shown(item)}", what)
        elif not fits(key, value):
            return _Fault(where, f"{_wanted(key)} is needed")
    return None


def list_fault(key: str) -> str:
    """Return what to say of a list that is the value of ``key``."""
    if key in LIST_KEYS:
        return "a list of texts is needed, each in quotation marks"
    return f"give a number, a boolean or a string; lists are for {', '.join(LIST_KEYS)}"


def _wanted(key: str) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names[known_keys()[key].kind]


def _shown(text: str) -> str:
    return f"'{text}'" if text.isprintable() else repr(text)


def check_paths(flat: Mapping[str, Any], where: str) -> None:
    """Refuse a path of a TOML file in which an escape became a tab or a line break.

    One that there is may hold whatever it does.

    Raises:
        ConfigError: naming file and key.
    """
    for key in PATH_KEYS:
        value = flat.get(key, "")
        names = value if isinstance(value, list) else file_names(str(value), key=key)
        if has_control(value) and not all(is_path(str(name)) for name in names):
            raise ConfigError(
                f"{where}: {key} holds a tab, line break or other control character: a backslash "
                "in \"...\" begins an escape; write the path in '...', or with / for \\"
            )
