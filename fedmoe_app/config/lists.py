"""Several names in one value of the run config: files, columns, classes.

Flower's run config holds no lists, so a list is a string: names separated by commas, or, where a
name itself has a comma, a JSON list: ``'["Health, safety", "Other"]'``. A TOML list in a file or
in ``-c`` becomes one (:func:`fedmoe_app.config.config_file.without_lists`).

Imports nothing heavy: the command line reads these before anything else is looked at.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.paths import check_length
from fedmoe_app.config.text_file import EncodingError, read_text

# What people write as a list: a quotation mark after the bracket, or no other bracket inside.
_LIST = re.compile(r"""\s*\[(\s*["'].*|[^\[\]]*)\]\s*""", re.DOTALL)
_BETWEEN_PATTERNS = re.compile(r",(?![^\[\]]*\])")
_LINE_END = re.compile(r"\r\n|\r|\n")


def name_list(text: str, key: str) -> tuple[str, ...]:
    """Return the names in a value: of a JSON list as they are, else between commas, stripped.

    Args:
        text: the value; nothing between two commas is no name.
        key: the run config's key, for the message.

    Raises:
        DataError: a list that is not JSON, or holds anything but text that is not empty.
    """
    if _LIST.fullmatch(text):
        return _from_json(text, key)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def as_list(names: Iterable[str]) -> str:
    """Return names as the JSON list that :func:`name_list` reads."""
    return json.dumps(list(names), ensure_ascii=False)


def _from_json(text: str, key: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except ValueError:
        raise DataError(f"{key} = {text}: a list is written as JSON: {_as_json(text)}") from None
    for position, name in enumerate(names, start=1):
        if not isinstance(name, str):
            raise DataError(
                f"{key} = {text}: entry {position} is not text; put it in quotation marks: "
                f'"{json.dumps(name)}"'
            )
        if not name.strip():
            raise DataError(f"{key} = {text}: entry {position} is empty; name it or leave it out")
    return tuple(names)


def _as_json(text: str) -> str:
    """Return what was meant by a list that is not JSON, such as TOML's or Python's."""
    try:
        names = [str(name) for name in tomllib.loads(f"names = {text}")["names"]]
    except tomllib.TOMLDecodeError:
        parts = text.strip().removeprefix("[").removesuffix("]").split(",")
        names = [name for part in parts if (name := part.strip().strip("\"'").strip())]
    return as_list(names)


# -- files -------------------------------------------------------------------------------------


def file_names(
    value: str, folder: Path | None = None, key: str = "data.source", patterns: bool = False
) -> tuple[str, ...]:
    """Return the files that a value names: itself, if that is a path that exists, else its parts.

    So a path with commas, or one called ``[1]``, is given like any other.

    Args:
        value: one path, paths separated by commas, or a JSON list of paths.
        folder: where a relative path begins; None for the current one.
        key: the run config's key, for the message.
        patterns: whether names are patterns, in whose brackets a comma is a character.

    Raises:
        DataError: a list that is not JSON, or a name that is longer than any can be.
    """
    if is_path(value, folder):
        return (value,)
    if patterns and not _LIST.fullmatch(value):
        parts = _BETWEEN_PATTERNS.split(value)
        names = tuple(name for part in parts if (name := part.strip()))
    else:
        names = name_list(value, key)
    for name in names:
        try:
            check_length(name)
        except ValueError as error:
            raise DataError(f'{key} = "{name[:60]}…": {error}') from None
    return names


def is_path(name: str, folder: Path | None = None) -> bool:
    """Tell whether there is a file or folder of this name; ``~`` is the home folder."""
    # Not Path.exists and Path.expanduser, which fail for a long name or an unknown user.
    return bool(name) and os.path.exists(os.path.join(folder or "", os.path.expanduser(name)))


def join_files(names: Sequence[str], as_json: bool) -> str:
    """Return one value for several files; as a JSON list, too, where a name has a comma.

    Args:
        names: paths.
        as_json: whether a JSON list is wanted where it is not needed.
    """
    needed = len(names) > 1 and any("," in name for name in names)
    return as_list(names) if as_json or needed else ",".join(names)


def looked_for(value: str) -> str:
    """Return how a value with commas was taken, for the message that a file is not there."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if len(parts) < 2 or _LIST.fullmatch(value):
        return ""
    return (
        f'; "{value}" was looked for as one path and as {len(parts)} paths, separated at the '
        f"commas; several paths with commas are given as a list: {as_list(['a, b.csv', 'c.csv'])}"
    )


def base_names(value: str) -> str:
    """Return the files of a value for a title: of absolute paths the last parts."""
    try:
        names = file_names(value)
    except DataError:  # a title is no place to complain
        names = (value,)
    return ", ".join(Path(name).name if Path(name).is_absolute() else name for name in names)


# -- classes -----------------------------------------------------------------------------------


def label_names(text: str) -> tuple[str, ...]:
    """Return the class names of ``data.label-names`` in index order; none where it is empty.

    Raises:
        DataError: a name that stands there twice, an empty one, or only one.
    """
    if not text.strip():
        return ()
    names = name_list(text, "data.label-names")
    return _checked(names, f"data.label-names = {text}", "entry")


def read_label_names(path: Path) -> tuple[str, ...]:
    """Return the class names of the file ``data.label-names-file``: one a line, or a JSON list.

    Raises:
        DataError: no such file, an encoding that is not known, an empty line, a name that stands
            there twice, or fewer than two.
    """
    key = f'data.label-names-file = "{path}"'
    try:
        text = read_text(path.expanduser())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{key}: {reason} (looked for {path.absolute()} on the server's machine); give an "
            "absolute path"
        ) from None
    except EncodingError as error:
        raise DataError(f"{key}: {error}") from None
    if _LIST.fullmatch(text):
        return _checked(_from_json(text, "data.label-names-file"), key, "entry")
    return _checked(_lines(text, key), key, "line")


def _lines(text: str, key: str) -> tuple[str, ...]:
    lines = [line.strip() for line in _LINE_END.split(text)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(f"{key}: line {lines.index('') + 1} is empty; one class name stands a line")
    return tuple(lines)


def _checked(names: tuple[str, ...], where: str, place: str) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        before = first.setdefault(name, number)
        if before != number:
            raise DataError(
                f'{where}: the name "{name}" stands there twice, as {place} {before} and {place} '
                f"{number}; leave one out"
            )
    if len(names) < 2:
        found = f'only the class "{names[0]}"' if names else "no class"
        raise DataError(f"{where}: {found}; name at least two, in the order of their indices")
    return names


def torn_name(label: str, names: Sequence[str]) -> str:
    """Return a hint for a label that is no class because ``data.label-names`` was split in it.

    Args:
        label: of a row; the hint does not quote it.
        names: the run's class names.
    """
    parts = [part.strip() for part in label.split(",")]
    if len(parts) < 2 or not set(parts) <= set(names):
        return ""
    example = as_list(["Health, safety", "Other"])
    return f"; a class with a comma in its name is given in a list: data.label-names = '{example}'"


def check_classes(names: Sequence[str], source: str) -> None:
    """Refuse to classify into fewer than two classes.

    Args:
        names: the run's class names.
        source: ``data.source``, whose rows they were found in.

    Raises:
        DataError: naming the source and its class.
    """
    if len(names) < 2:
        found = f'has the class "{names[0]}"' if names else "has a class"
        raise DataError(
            f'data.source = "{source}": every row {found}; a classifier needs at least two: add '
            "rows of another class, or name all classes in data.label-names"
        )
