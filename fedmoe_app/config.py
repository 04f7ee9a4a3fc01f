"""The typed run config: one frozen section per table of ``[tool.flwr.app.config]``.

Flower hands the run config over as one flat dict (``{"data.alpha": 0.5, ...}``).
:func:`parse_run_config` turns it into a :class:`RunConfig` or raises :class:`ConfigError` with the
key, the value and the allowed choices. Defaults and one-line descriptions stand in
``pyproject.toml``, which is their only place: a key that is missing here is an error, too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

FlatConfig = Mapping[str, bool | float | int | str]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]

# The words among the values of data.source; all others name files or hub data sets.
EMBEDDED = "embedded"
NODES = "nodes"  # every node brings its own file


class ConfigError(ValueError):
    """A run config that cannot be used; the message names key, value and choices."""


class _Section(BaseModel):
    """A table of the run config: frozen, kebab-case keys, finite numbers of the right type."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        protected_namespaces=(),
    )


class DataConfig(_Section):
    """``data.*``: where the text comes from and how it is split over the clients."""

    source: Text
    test_source: str
    task: Literal["classification", "causal-lm"]
    text_field: Text
    label_field: Text
    label_names: str
    instruction_field: Text
    context_field: str
    response_field: Text
    partition: Literal["iid", "dirichlet", "natural"]
    alpha: Annotated[float, Field(gt=0)]
    partition_by: str
    min_partition_size: Annotated[int, Field(ge=0)]
    local_test_fraction: Annotated[float, Field(ge=0, lt=1)]
    max_train_examples: Annotated[int, Field(ge=0)]
    max_test_examples: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=4)]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names given in the config, in index order; empty when the source tells them."""
        return tuple(name.strip() for name in self.label_names.split(",") if name.strip())

    @property
    def partition_column(self) -> str:
        """Column that the Dirichlet or natural partition goes by."""
        return self.partition_by or self.label_field

    @model_validator(mode="after")
    def _partition_needs_a_column(self) -> DataConfig:
        if self.task == "causal-lm" and self.partition != "iid" and not self.partition_by:
            raise ValueError(
                f'partition = "{self.partition}" with task = "causal-lm" needs partition-by: '
                'name a column, or choose partition = "iid"'
            )
        return self


class ModelConfig(_Section):
    """``model.*``: what is trained."""

    name: Text
    head: Literal["auto", "sequence", "label-words"]
    dtype: Literal["float32", "bfloat16"]


class TrainConfig(_Section):
    """``train.*``: the local loop; names as in transformers' ``TrainingArguments``."""

    learning_rate: Annotated[float, Field(gt=0)]
    num_train_epochs: Annotated[float, Field(gt=0)]
    max_steps: Annotated[int, Field(ge=0)]
    per_device_train_batch_size: Annotated[int, Field(ge=1)]
    per_device_eval_batch_size: Annotated[int, Field(ge=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]
    gradient_checkpointing: bool
    threads: Annotated[int, Field(ge=1)]


class FedProxConfig(_Section):
    """``fedprox.*``."""

    proximal_mu: Annotated[float, Field(ge=0)]


class FedMoEConfig(_Section):
    """``fedmoe.*``."""

    experts_per_client: Annotated[int, Field(ge=1)]
    usage_examples: Annotated[int, Field(ge=1)]


class RunConfig(_Section):
    """A whole run. Build it with :func:`parse_run_config`."""

    scheme: Text
    scheme_args: str
    num_server_rounds: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    min_clients: Annotated[int, Field(ge=1)]
    fraction_train: Fraction
    wait_for_clients: Annotated[float, Field(ge=0)]
    round_timeout: Annotated[float, Field(gt=0)]
    evaluate_every: Annotated[int, Field(ge=1)]
    max_failed_rounds: Annotated[int, Field(ge=1)]
    output_dir: str
    run_name: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    fedprox: FedProxConfig
    fedmoe: FedMoEConfig

    @property
    def scheme_kwargs(self) -> dict[str, Any]:
        """``scheme-args`` as a dict."""
        return dict(json.loads(self.scheme_args)) if self.scheme_args else {}

    @field_validator("scheme_args")
    @classmethod
    def _is_json_object(cls, value: str) -> str:
        if value:
            try:
                parsed = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"not JSON ({error})") from None
            if not isinstance(parsed, dict):
                raise ValueError('must be a JSON object such as {"lam": 0.5}')
            if not _is_finite(parsed):
                raise ValueError("numbers must be finite")
        return value

    @field_validator("output_dir")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        # The ServerApp does not run in the folder in which `flwr run` was typed.
        if value and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, or empty for $FEDMOE_HOME/results")
        return value

    @field_validator("run_name")
    @classmethod
    def _is_one_folder(cls, value: str) -> str:
        if value and (Path(value).name != value or value in (".", "..")):
            raise ValueError("must be a plain folder name without slashes")
        return value


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
    if field is not None and field.annotation in _Section.__subclasses__():
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
    return str(value) if isinstance(value, float) else json.dumps(value, default=str)


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _choices(loc: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        field = section.model_fields[str(part).replace("-", "_")]
        section = field.annotation  # type: ignore[assignment]
    return ", ".join(name.replace("_", "-") for name in section.model_fields)
