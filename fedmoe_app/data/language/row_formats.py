"""What a row of a language model's data holds, recognised by the columns of its table.

Kinds of rows, in the order in which they are looked for; TRL and Axolotl know the same columns:

- ``messages``: a conversation in ``messages`` (OpenAI's role and content) or ``conversations``
  (ShareGPT's from and value);
- ``prompt-completion``: ``prompt`` and ``completion``, texts or lists of messages;
- ``instruction``: ``instruction`` and ``response`` with an optional ``context``, or Alpaca's
  ``instruction`` and ``output`` with an optional ``input``;
- ``text``: plain text in ``data.text-field``.

Columns that the config names take the place of these, and ``data.row-format`` names the kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.reading.columns import Asked
from fedmoe_app.data.table import Table, check_column, column_names

MESSAGES, COMPLETION, INSTRUCTION, TEXT = "messages", "prompt-completion", "instruction", "text"

_logger = logging.getLogger("fedmoe")
_KNOWN = (
    "messages; conversations; prompt, completion; instruction, response; instruction, output; text"
)
_KEYS = {
    MESSAGES: ("messages-field",),
    COMPLETION: ("prompt-field", "completion-field"),
    INSTRUCTION: ("instruction-field", "response-field", "context-field"),
    TEXT: ("text-field",),
}


@dataclass(frozen=True)
class RowFormat:
    """A kind of row and its columns.

    Attributes:
        kind: one of the four above.
        columns: the conversation; prompt and completion; instruction, response and, where there
            is one, context; or the text.
        also: other kinds whose columns the table has, too.
    """

    kind: str
    columns: tuple[str, ...]
    also: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """The kind and its columns, for people."""
        named = ", ".join(f'"{column}"' for column in self.columns)
        also = f" (it has columns of {', '.join(self.also)}, too: data.row-format)"
        return f"{self.kind} in {named}{also if self.also else ''}"


def recognise(table: Table, config: DataConfig) -> RowFormat:
    """Return what a table's rows hold.

    Raises:
        DataError: a column that the config names is not there, or no known ones are.
    """
    found = find_format(table.columns, config)
    if found is None and config.named_rows != "auto":
        _refuse_missing(table, config, config.named_rows)
    if found is None:
        raise DataError(_unknown(table))
    return found


def find_format(columns: Collection[str], config: DataConfig) -> RowFormat | None:
    """Return what rows with these columns hold; None if they are not known."""
    kind = config.named_rows
    if kind != "auto":
        return next(_FINDERS[kind](columns, config), None)
    fitting = [found for find in _FINDERS.values() for found in find(columns, config)]
    if not fitting:
        return None
    kinds = dict.fromkeys(found.kind for found in fitting[1:])
    also = tuple(kind for kind in kinds if kind not in (fitting[0].kind, TEXT))
    return RowFormat(fitting[0].kind, fitting[0].columns, also)


def asked_of_language(columns: Collection[str], config: DataConfig) -> Asked:
    """Return the columns of a file to read; those that the config names also where they are not
    among the file's first rows."""
    found = find_format(columns, config)
    keys = _KEYS.get(config.named_rows, ())
    named = (getattr(config, key.replace("-", "_")) for key in keys)
    names = found.columns if found else tuple(filter(None, named))
    kind = found.kind if found else config.named_rows
    if kind == INSTRUCTION and not (config.context_field or config.instruction_field):
        return Asked(names, optional=("context", "input"))  # of JSON, perhaps not in the first rows
    if kind == COMPLETION:
        return Asked(nested=names, texts_or_messages=True)
    return Asked(nested=names) if kind == MESSAGES else Asked(names)


def log_format(table: Table, found: RowFormat) -> None:
    """Say in the log what a table's rows were taken for; clients of one process read it anew."""
    _log_once(f"{table.origin}: {found.described}")


@cache
def _log_once(line: str) -> None:
    _logger.info("%s", line)


def _messages(columns: Collection[str], config: DataConfig) -> Iterator[RowFormat]:
    names = (config.messages_field,) if config.messages_field else ("messages", "conversations")
    for name in names:
        if name in columns:
            yield RowFormat(MESSAGES, (name,))


def _completion(columns: Collection[str], config: DataConfig) -> Iterator[RowFormat]:
    names = (config.prompt_field or "prompt", config.completion_field or "completion")
    if all(name in columns for name in names):
        yield RowFormat(COMPLETION, names)


def _instruction(columns: Collection[str], config: DataConfig) -> Iterator[RowFormat]:
    """A context is taken where its column is there, unless the other two were named."""
    instruction = config.instruction_field or "instruction"
    named = bool(config.instruction_field and config.response_field)
    for usual, passage in (("response", "context"), ("output", "input")):
        response = config.response_field or usual
        context = config.context_field or ("" if named or passage not in columns else passage)
        names = (instruction, response, *filter(None, [context]))
        if all(name in columns for name in names):
            yield RowFormat(INSTRUCTION, names)


def _text(columns: Collection[str], config: DataConfig) -> Iterator[RowFormat]:
    if config.text_field in columns:
        yield RowFormat(TEXT, (config.text_field,))


_FINDERS: dict[str, Callable[[Collection[str], DataConfig], Iterator[RowFormat]]] = {
    MESSAGES: _messages,
    COMPLETION: _completion,
    INSTRUCTION: _instruction,
    TEXT: _text,
}


def _refuse_missing(table: Table, config: DataConfig, kind: str) -> None:
    """Name the column that is missing, or all names that were looked for."""
    for key in _KEYS[kind]:
        name = getattr(config, key.replace("-", "_"))
        if name:
            check_column(table, name, f"data.{key}")
    raise DataError(
        f"{table.origin}: no columns of {kind} rows among {column_names(table)}; name them in "
        f"{', '.join(f'data.{key}' for key in _KEYS[kind])}"
    )


def _unknown(table: Table) -> str:
    keys = ", ".join(f"data.{key}" for keys in _KEYS.values() for key in keys)
    return (
        f"{table.origin}: among {column_names(table)} are none that a language model's rows have "
        f"({_KNOWN}); name yours in {keys}"
    )
