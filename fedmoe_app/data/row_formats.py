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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from fedmoe_app.config import DataConfig
from fedmoe_app.data.errors import DataError
from fedmoe_app.data.table import Table, column_names, read_feature

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
    kind = config.named_rows
    if kind != "auto":
        found = next(_FINDERS[kind](table, config), None)
        return found or _refuse_missing(table, config, kind)
    fitting = [found for find in _FINDERS.values() for found in find(table, config)]
    if not fitting:
        raise DataError(_unknown(table))
    kinds = dict.fromkeys(found.kind for found in fitting[1:])
    also = tuple(kind for kind in kinds if kind not in (fitting[0].kind, TEXT))
    return RowFormat(fitting[0].kind, fitting[0].columns, also)


def log_format(table: Table, found: RowFormat) -> None:
    """Say in the log what a table's rows were taken for; clients of one process read it anew."""
    _log_once(f"{table.origin}: {found.described}")


@cache
def _log_once(line: str) -> None:
    _logger.info("%s", line)


def _messages(table: Table, config: DataConfig) -> Iterator[RowFormat]:
    names = (config.messages_field,) if config.messages_field else ("messages", "conversations")
    for name in names:
        if name in table.dataset.features:
            yield RowFormat(MESSAGES, (name,))


def _completion(table: Table, config: DataConfig) -> Iterator[RowFormat]:
    names = (config.prompt_field or "prompt", config.completion_field or "completion")
    if all(name in table.dataset.features for name in names):
        yield RowFormat(COMPLETION, names)


def _instruction(table: Table, config: DataConfig) -> Iterator[RowFormat]:
    """A context is taken where its column is there, unless the other two were named."""
    features = table.dataset.features
    instruction = config.instruction_field or "instruction"
    named = bool(config.instruction_field and config.response_field)
    for usual, passage in (("response", "context"), ("output", "input")):
        response = config.response_field or usual
        context = config.context_field or ("" if named or passage not in features else passage)
        columns = (instruction, response, *filter(None, [context]))
        if all(name in features for name in columns):
            yield RowFormat(INSTRUCTION, columns)


def _text(table: Table, config: DataConfig) -> Iterator[RowFormat]:
    if config.text_field in table.dataset.features:
        yield RowFormat(TEXT, (config.text_field,))


_FINDERS: dict[str, Callable[[Table, DataConfig], Iterator[RowFormat]]] = {
    MESSAGES: _messages,
    COMPLETION: _completion,
    INSTRUCTION: _instruction,
    TEXT: _text,
}


def _refuse_missing(table: Table, config: DataConfig, kind: str) -> RowFormat:
    """Name the column that is missing, or all names that were looked for."""
    for key in _KEYS[kind]:
        name = getattr(config, key.replace("-", "_"))
        if name:
            read_feature(table, name, f"data.{key}")
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
