"""What people read of the run config, made of its fields: the block of ``pyproject.toml`` that
Flower takes the defaults from, the reference page, and the explanation of one key.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overview import OVERVIEW, overview
from fedmoe_app.config.pairs import write_value
from fedmoe_app.config.parse import default_run_config, nearest_keys
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.config.section import Section, table_of, traits_of
from fedmoe_app.config.tasks import TASKS

WRITE = "fedmoe config --write"
PAGE = Path("docs/reference/run-config.md")

_WIDTH, _COLUMN = 100, 27  # of the block; comments begin at this column where the value leaves room
_BEGIN = f"# -- run config: made of fedmoe_app/config by `{WRITE}`"
_END = "# -- end of the run config"
_HEAD = f"""{_BEGIN}
# Every key of a run, with its default. Override with
#   flwr run . --run-config 'scheme="fedmoe" num-server-rounds=10'
# or with one of the files in experiments/. A wrong name, type or range stops the run
# before any node is contacted.
"""
_TABLE = "tool.flwr.app.config"
_PAGE_HEAD = f"""# Run config

Every key of a run, made of `fedmoe_app/config` by `{WRITE}`. `fedmoe config KEY` explains one.

A key is set with `-c` (`fedmoe run . -c 'data.alpha=0.1'`) or in a TOML file such as those in
`experiments/`. The last column says whether it may change when a run [goes on](../faults.md).
"""
# What a text is, in words; see section.Holds.
_TEXTS = {
    "text": "text",
    "names": "names",
    "words": "words",
    "files": "words, names or files",
    "path": "name or path",
    "results": "absolute path",
}


# -- pyproject.toml ----------------------------------------------------------------------------


def toml_block(values: Mapping[str, Any] | None = None) -> str:
    """Return the tables ``[tool.flwr.app.config…]`` with a comment for every key.

    Args:
        values: those of an app that are not the code's defaults, by their dotted keys.
    """
    values = values or {}
    tables = [_HEAD + _toml_table("", RunConfig, values)]
    tables += [_toml_table(name, table, values) for name, table in _tables()]
    return "\n".join([*tables, f"{_END}\n"])


def _tables() -> list[tuple[str, type[Section]]]:
    fields = RunConfig.model_fields.values()
    return [(str(field.alias), table) for field in fields if (table := table_of(field))]


def _toml_table(
    name: str, table: type[Section], values: Mapping[str, Any] = MappingProxyType({})
) -> str:
    head = f"# {_summary(table)}\n[{_TABLE}.{name}]\n" if name else f"[{_TABLE}]\n"
    prefix = f"{name}." if name else ""
    return head + "".join(
        _toml_key(field, values.get(f"{prefix}{field.alias}", field.default))
        for field in _keys(table)
    )


def _summary(table: type[Section]) -> str:
    return (table.__doc__ or "").partition("\n")[0]


def _keys(table: type[Section]) -> list[FieldInfo]:
    return [field for field in table.model_fields.values() if not table_of(field)]


def _toml_key(field: FieldInfo, value: Any) -> str:
    """Return a line with its comment behind it, and above it where the value is long."""
    pair = f"{field.alias} = {write_value(value)}"
    column = _COLUMN if len(pair) < _COLUMN else len(pair) + 2
    if column > _WIDTH // 2:
        return f"{_comment(field, _WIDTH)}\n{pair}\n"
    first, *more = _comment(field, _WIDTH - column).splitlines()
    lines = [f"{pair:{column}}{first}", *(" " * column + line for line in more)]
    return "\n".join(lines) + "\n"


def _comment(field: FieldInfo, width: int) -> str:
    doc = field.description or ""
    return textwrap.fill(
        doc, width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _default(field: FieldInfo) -> str:
    return write_value(field.default)


# -- the reference page ------------------------------------------------------------------------


def page() -> str:
    """Return the reference page, in Markdown: a table of the run config a section."""
    parts = [f"{_PAGE_HEAD}\n{_page_table('', RunConfig)}"]
    for name, table in _tables():
        parts.append(f"## {name}\n\n{_summary(table)}\n\n{_page_table(f'{name}.', table)}")
    return "\n".join([*parts, f"## Tasks\n\n{_tasks_table()}"])


def _tasks_table() -> str:
    head = ("data.task", "what the model learns", "data.metric", "columns are named by")
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, kind in TASKS.items():
        keys = ", ".join(f"`data.{key}`" for key in kind.column_keys)
        rows.append(f"| {name} | {kind.learnt} | {', '.join(kind.metrics)} | {keys} |")
    return "\n".join(rows) + "\n"


def _page_table(prefix: str, table: type[Section]) -> str:
    head = ("key", "values", "default", "what it does", "on resume")
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for field in _keys(table):
        cells = (
            f"`{prefix}{field.alias}`",
            _values(field),
            f"`{_default(field)}`",
            _markdown(field.description or ""),
            "may change" if traits_of(field)["resumable"] else "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _markdown(text: str) -> str:
    plain = re.sub(r"([|<*_\[\]])", r"\\\1", text)
    return re.sub(r"docs/([\w-]+\.md)", r"[docs/\1](../\1)", plain)


def _values(field: FieldInfo) -> str:
    """Return the values of a key in words: its choices, or its type and range."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    if field.annotation is str:
        return _TEXTS[traits_of(field)["holds"]]
    kinds: dict[Any, str] = {bool: "true, false", int: "integer", float: "number"}
    ranges = ", ".join(filter(None, map(_range, field.metadata)))
    return f"{kinds[field.annotation]} {ranges}".rstrip()


def _range(rule: Any) -> str:
    match rule:
        case Ge(ge=least):
            return f"≥ {least}"
        case Gt(gt=bound):
            return f"> {bound}"
        case Le(le=most):
            return f"≤ {most}"
        case Lt(lt=bound):
            return f"< {bound}"
        case MultipleOf(multiple_of=factor):
            return f"in steps of {factor}"
    return ""


# -- one key -----------------------------------------------------------------------------------


def explain(name: str) -> str:
    """Return what a key does, its default and its values; of a table's name, the whole table.

    Raises:
        ConfigError: there is none of this name; it names the nearest ones.
    """
    if table := dict(_tables()).get(name):
        return _toml_table(name, table).rstrip()
    field = dict(RunConfig.all_keys()).get(name)
    if field is None:
        near = nearest_keys(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "`fedmoe config` shows all"
        raise ConfigError(f"{name}: unknown key; {hint}")
    resume = "may change" if traits_of(field)["resumable"] else "stays as it was"
    return (
        f"{name} = {_default(field)}\n{textwrap.fill(field.description or '', _WIDTH)}\n"
        f"values: {_values(field)}\nin a resumed run: {resume}"
    )


# -- files -------------------------------------------------------------------------------------


def stale(app: Path) -> dict[Path, str]:
    """Return the generated files of an app's folder that say something else, with the new text.

    The reference page and the overview of the schemes are among them only where there are docs.
    fedmoe's own ``pyproject.toml`` gets the code's defaults; that of another app keeps its values
    and gets the keys that it lacks.

    Raises:
        ConfigError: no ``pyproject.toml`` there, or none with the two lines around the run config;
            an app's own that has keys that there are not.
    """
    pyproject = app / "pyproject.toml"
    if not pyproject.is_file():
        raise ConfigError(f"{pyproject.absolute()}: no such file; name the app's folder with --app")
    wanted = {pyproject: _with_block(pyproject)}
    if (app / PAGE).parent.is_dir():
        wanted[app / PAGE] = page()
    if text := overview(app):
        wanted[app / OVERVIEW] = text
    return {path: text for path, text in wanted.items() if _read(path) != text}


def _with_block(pyproject: Path) -> str:
    text = _read(pyproject)
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(f"{_END}\n")
    if not begin or not end:
        raise ConfigError(
            f'{pyproject}: the run config is not between the lines "{_BEGIN}" and "{_END}"; '
            "put it there"
        )
    return before + toml_block(_own_values(pyproject, text)) + after


def _own_values(pyproject: Path, text: str) -> dict[str, Any]:
    """Return the run config of an app that is not fedmoe itself."""
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{pyproject}: {error}") from None
    if parsed.get("project", {}).get("name") == "fedmoe":
        return {}
    values = default_run_config(pyproject)
    if unknown := sorted(values.keys() - dict(RunConfig.all_keys()).keys()):
        near = nearest_keys(unknown[0])
        hint = f"rename it to {' or '.join(near)}, or take it out" if near else "take it out"
        raise ConfigError(f"{pyproject}: {unknown[0]}: unknown key; {hint}, then write anew")
    return values


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
