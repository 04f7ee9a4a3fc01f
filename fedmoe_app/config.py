"""The typed run config: one frozen section per table of ``[tool.flwr.app.config]``.

Flower hands the run config over as one flat dict (``{"data.alpha": 0.5, ...}``).
:func:`parse_run_config` turns it into a :class:`RunConfig` or raises :class:`ConfigError` with the
key, the value and the allowed choices. The tables are in :mod:`fedmoe_app.sections`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedmoe_app.sections import (
    EMBEDDED,
    NODES,
    DataConfig,
    ModelConfig,
    Paragraph,
    RunConfig,
    Section,
    TrainConfig,
    parse_prompt_format,
)

__all__ = [
    "EMBEDDED",
    "NODES",
    "ConfigError",
    "DataConfig",
    "FlatConfig",
    "ModelConfig",
    "Paragraph",
    "RunConfig",
    "TrainConfig",
    "default_run_config",
    "flatten_run_config",
    "flatten_table",
    "parse_prompt_format",
    "parse_run_config",
]

FlatConfig = Mapping[str, bool | float | int | str]


class ConfigError(ValueError):
    """A run config that cannot be used; the message names key, value and choices."""


def parse_run_config(flat: FlatConfig) -> RunConfig:
    """Check a flat run config, as Flower's ``context.run_config`` holds it.

    Raises:
        ConfigError: naming every wrong, missing or unknown key with its value and the choices.
    """
    try:
        return RunConfig.model_validate(_nest(flat))
    except ValidationError as error:
        raise ConfigError(_readable(error)) from None


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
    if field is not None and field.annotation in Section.__subclasses__():
        shown = _shown(flat[name])
        raise ConfigError(f"run config: {name} = {shown}: a table, not a value; set {key} instead")
    raise ConfigError(f"run config: {key}: unknown key; {name} is a value, not a table")


def flatten_run_config(config: RunConfig) -> dict[str, bool | float | int | str]:
    """Return the flat dict that :func:`parse_run_config` takes."""
    return flatten_table(config.model_dump(by_alias=True))


def default_run_config(pyproject: Path) -> dict[str, bool | float | int | str]:
    """Read the flat default run config out of the app's ``pyproject.toml``."""
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
    """One line per fault: ``data.alpha = -1: Input should be greater than 0``."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            lines.append(f"{key}: missing from the run config")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; choose one of {_choices(fault['loc'])}")
        elif isinstance(fault["input"], Mapping):
            lines.append(f"{key}: {message}")
        else:
            lines.append(f"{key} = {_shown(fault['input'])}: {message}")
    return "run config: " + "; ".join(lines)


def _shown(value: Any) -> str:
    """Return a value as TOML writes it; JSON would call infinity ``Infinity``."""
    if isinstance(value, float):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def _choices(loc: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        field = section.model_fields[str(part).replace("-", "_")]
        section = field.annotation  # type: ignore[assignment]
    return ", ".join(name.replace("_", "-") for name in section.model_fields)
