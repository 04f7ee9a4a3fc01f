"""The typed run config from a flat one, and back.

Flower hands the run config over as one flat dict (``{"data.alpha": 0.5, ...}``).
:func:`parse_run_config` turns it into a :class:`RunConfig` or raises :class:`ConfigError` with the
key, the value and the allowed choices. The tables are in :mod:`fedmoe_app.config.schema`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.pairs import write_value
from fedmoe_app.config.schema import NODES, DataConfig, RunConfig
from fedmoe_app.config.section import Section, describe, table_of

FlatConfig = Mapping[str, bool | float | int | str]


def parse_run_config(flat: FlatConfig) -> RunConfig:
    """Check a flat run config, as Flower's ``context.run_config`` holds it.

    Args:
        flat: dotted keys, such as ``{"data.alpha": 0.1, "seed": 1}``; a key that is not there has
            its default, so ``{}`` is the default run.

    Raises:
        ConfigError: naming every wrong or unknown key with its value and the choices.
    """
    try:
        # Fields' names with underscores are for Python alone.
        return RunConfig.model_validate(_nest(flat), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(_readable(error)) from None


def check_labels_known(data: DataConfig) -> None:
    """Refuse nodes with data of their own whose classes the server does not know.

    A file of names is not looked at: it lies on the server's machine, which need not be this one.

    Raises:
        ConfigError: naming the key and its forms.
    """
    unnamed = not data.label_names_file and len(data.labels) < 2
    if data.source == NODES and data.kind.classifies and unnamed:
        raise ConfigError(
            f'data.label-names = "{data.label_names}": with data.source = "nodes" the server '
            "cannot see the labels; name at least two, separated by commas or as a list, or one a "
            "line in a file that data.label-names-file names"
        )


def _nest(flat: FlatConfig) -> dict[str, Any]:
    """Turn dotted keys into tables; a name that is used as value and as table is refused."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        for end in range(1, len(sections) + 1):
            _check_is_table(".".join(sections[:end]), key, flat)
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
        table[leaf] = value
    return nested


def _check_is_table(name: str, key: str, flat: FlatConfig) -> None:
    if name not in flat:
        return
    field = RunConfig.model_fields.get(name.replace("-", "_"))
    if field is not None and table_of(field):
        value = write_value(flat[name])
        raise ConfigError(f"run config: {name} = {value}: a table, not a value; set {key} instead")
    raise ConfigError(f"run config: {key}: unknown key; {name} is a value, not a table")


def flatten_run_config(config: RunConfig) -> dict[str, bool | float | int | str]:
    """Return the flat dict that :func:`parse_run_config` takes."""
    return flatten_table(config.model_dump(by_alias=True))


def default_run_config(pyproject: Path | None = None) -> dict[str, bool | float | int | str]:
    """Return the flat default run config.

    Args:
        pyproject: ``pyproject.toml`` of an app whose own defaults are meant, which may differ from
            those of the code.
    """
    if pyproject is None:
        return {name: field.default for name, field in RunConfig.all_keys()}
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    return flatten_table(table["tool"]["flwr"]["app"]["config"])


def flatten_table(
    table: Mapping[str, Any], prefix: str = ""
) -> dict[str, bool | float | int | str]:
    """Return nested tables as a flat dict with dotted keys."""
    flat: dict[str, bool | float | int | str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten_table(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _readable(error: ValidationError) -> str:
    faults = [
        unknown_key(fault["loc"]) + _near(".".join(map(str, fault["loc"])), fault["input"])
        if fault["type"] == "extra_forbidden"
        else describe(fault)
        for fault in error.errors()
    ]
    return f"run config: {'; '.join(faults)}"


def unknown_key(path: Sequence[int | str]) -> str:
    """Return what to say of a key that there is not; ``path`` is the key, split at its dots."""
    return f"{'.'.join(map(str, path))}: unknown key; choose one of {_choices(path)}"


def _near(key: str, value: Any) -> str:
    """Return the question whether a key was meant that is written almost the same."""
    keys = [key]
    if isinstance(value, Mapping):
        keys = [f"{key}.{name}" for name in flatten_table(value)]
    near = dict.fromkeys(name for key in keys for name in nearest_keys(key))
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _choices(path: Sequence[int | str]) -> str:
    section: type[Section] = RunConfig
    for part in path[:-1]:
        field = section.model_fields.get(str(part).replace("-", "_"))
        table = table_of(field) if field else None
        if table is None:
            break
        section = table
    return ", ".join(name.replace("_", "-") for name in section.model_fields)


# -- the keys that there are --------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a value of a key may be.

    Attributes:
        kind: bool, int, float or str; a float may be written as an integer.
        choices: the words that there are, for a text that is one of some words.
        rule: what pydantic checks a value by.
    """

    kind: type
    choices: tuple[str, ...]
    rule: TypeAdapter[Any]

    def takes(self, value: object) -> bool:
        """Tell whether a value is of the right type and in its range."""
        try:
            self.rule.validate_python(value, strict=True)
        except ValidationError:
            return False
        return True


@cache
def known_keys() -> Mapping[str, Key]:
    """Return every dotted key of the run config."""
    return {name: _key(field) for name, field in RunConfig.all_keys()}


def _key(field: FieldInfo) -> Key:
    finite = Field(allow_inf_nan=False) if field.annotation is float else Field()
    annotation: Any = Annotated[field.annotation, finite, *field.metadata]
    rule: TypeAdapter[Any] = TypeAdapter(annotation)
    if get_origin(field.annotation) is Literal:
        return Key(str, get_args(field.annotation), rule)
    assert isinstance(field.annotation, type)
    return Key(field.annotation, (), rule)


def nearest_keys(name: str) -> tuple[str, ...]:
    """Return the keys that a name was perhaps meant for, at most three.

    Letter case, hyphens, underscores and dots do not count; nor does a missing or wrong table, or
    a missing word; else it is a key with almost the same letters.
    """
    return (_same_letters(name) or _more_words(name) or _close(name))[:3]


def almost_key(name: str) -> str | None:
    """Return the one key that a name is a misspelling of; None if there is none, or several."""
    found = _same_letters(name) or (() if _more_words(name) else _close(name))
    return found[0] if len(found) == 1 else None


def _same_letters(name: str) -> tuple[str, ...]:
    keys, last = known_keys(), _letters(_last(name))
    whole = tuple(key for key in keys if _letters(key) == _letters(name))
    return whole or tuple(key for key in keys if _letters(_last(key)) == last)


def _more_words(name: str) -> tuple[str, ...]:
    words = _words(_last(name))
    return tuple(key for key in known_keys() if words and words <= _words(_last(key)))


def _close(name: str) -> tuple[str, ...]:
    spelled = {_letters(_last(key)): key for key in known_keys()}
    spelled |= {_letters(key): key for key in known_keys()}
    for written in (name, _last(name)):
        if found := get_close_matches(_letters(written), spelled, 1, 0.8):
            return (spelled[found[0]],)
    return ()


def _last(key: str) -> str:
    return re.split(r"[.:/]", key)[-1]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(name: str) -> set[str]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)  # learningRate
    return set(re.findall(r"[a-z0-9]+", parts.lower()))
