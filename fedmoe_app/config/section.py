"""What a table of the run config is made of: a frozen class whose fields say all of their keys.

A key is one field: its type and range, its default, what it does, and whether a run that goes on
from a checkpoint may have another value. :mod:`fedmoe_app.config.reference` writes the block of
``pyproject.toml`` and the reference page from these fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedmoe_app.config.pairs import write_value
from fedmoe_app.config.paths import check_length

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


# What a text holds: several names or words in one value, a path of several files, of one file or
# folder, or of a result folder, which is never relative.
Holds = Literal["text", "names", "words", "files", "path", "results"]


def key(
    default: Any, doc: str, *, resumable: bool = False, holds: Holds = "text", **rules: Any
) -> Any:
    """Declare a key of the run config; it stands at the right of a :class:`Section`'s field.

    Args:
        default: its value unless the run config says another.
        doc: what it does, in one line or a few; comment and reference page are made of it.
        resumable: whether it may change between the parts of a resumed run, because it decides
            how long is waited, what is written down and where, not how replies are aggregated.
        holds: what a text is: names may be given as a list, paths are made absolute.
        rules: pydantic's constraints, such as ``ge=1``.
    """
    traits: dict[str, Any] = {"resumable": resumable, "holds": holds}
    return Field(default, description=doc, json_schema_extra=traits, **rules)


def traits_of(field: FieldInfo) -> Mapping[str, Any]:
    """Return ``resumable`` and ``holds`` of a key."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


class Section(BaseModel):
    """A table of the run config: frozen, kebab-case keys, finite numbers of the right type.

    In Python the fields' names are used: ``TrainConfig(learning_rate=1e-3)``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @field_validator("*")
    @classmethod
    def _names_can_be(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        is_path = not table_of(field) and traits_of(field)["holds"] in ("path", "results")
        if is_path and isinstance(value, str):
            check_length(value)
        return value

    @classmethod
    def all_keys(cls, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
        """Return the dotted name and the field of every key, those of inner tables included."""
        for field in cls.model_fields.values():
            name = f"{prefix}{field.alias}"
            if table := table_of(field):
                yield from table.all_keys(f"{name}.")
            else:
                yield name, field


def table_of(field: FieldInfo) -> type[Section] | None:
    """Return the class of a field that is a table, and None for one that is a key."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def describe(fault: ErrorDetails) -> str:
    """Return a fault that pydantic found: ``data.alpha = -1: Input should be greater than 0``."""
    key = ".".join(str(part).replace("_", "-") for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], Mapping):  # a table whose keys do not fit together
        return f"{key}: {message}" if key else message
    return f"{key} = {write_value(fault['input'])}: {message}"
