"""The uniform columns of a language model's rows, by what the rows hold.

- instruction: ``prompt`` (laid out by ``data.prompt-format``) and ``response``;
- prompt-completion of texts: ``prompt`` and ``completion``, as they stand;
- plain text: ``text``;
- conversations: ``messages`` (list of role and content), ``num_given`` (so many of the first
  messages are never trained on) and ``where`` (file and row, for messages). Prompt and completion
  that hold messages are conversations, and so is everything but plain text where
  ``data.chat-template`` says that a template formats all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.language.conversations import (
    ASSISTANT,
    USER,
    Turn,
    as_conversation,
    looks_like_messages,
    read_messages,
)
from fedmoe_app.data.language.prompt_format import PromptFormat
from fedmoe_app.data.language.row_formats import (
    COMPLETION,
    INSTRUCTION,
    MESSAGES,
    TEXT,
    RowFormat,
    log_format,
    recognise,
)
from fedmoe_app.data.reading.columns import ROWS
from fedmoe_app.data.table import Needed, Table, read_cells, read_texts

Columns = dict[str, list[Any]]


def language_rows(table: Table, config: DataConfig) -> tuple[Columns, list[int]]:
    """Return the uniform columns and the numbers of the rows that they are made of.

    Rows without a text, prompt or answer (:func:`needed`) are left out.

    Raises:
        DataError: columns that are not known, or a cell that cannot be read.
    """
    found = recognise(table, config)
    log_format(table, found)
    return _READERS[found.kind](table, config, found)


def needed(table: Table, config: DataConfig) -> Needed:
    """Return what a row must have, for messages."""
    found = recognise(table, config)
    if found.kind == MESSAGES or (found.kind == COMPLETION and _are_messages(table, found)):
        return Needed(
            "in no row does the assistant answer the user",
            "in which no assistant answers a user",
        )
    return Needed.texts(found.columns[:2] if found.kind != TEXT else found.columns)


def _are_messages(table: Table, found: RowFormat) -> bool:
    head = next(table.parts(ROWS))
    cells = (read_cells(head, name, "data.prompt-field") for name in found.columns)
    return any(looks_like_messages(cell) for column in cells for cell in column if cell)


def _instructions(table: Table, config: DataConfig, found: RowFormat) -> tuple[Columns, list[int]]:
    instruction, response, *passage = found.columns
    instructions = read_texts(table, instruction, "data.instruction-field")
    responses = read_texts(table, response, "data.response-field")
    contexts = [""] * len(responses)
    if passage:
        contexts = read_texts(table, passage[0], "data.context-field")
    rows = _with_both(instructions, responses)
    if config.template_for_all:
        both = zip(instructions, contexts, strict=True)
        asked = ["\n\n".join(filter(None, pair)) for pair in both]
        return _pairs(table, asked, responses, rows), rows
    layout = _format(table, config, passage)
    return {
        "prompt": [layout.prompt(instructions[row], contexts[row]) for row in rows],
        "response": [responses[row] for row in rows],
    }, rows


def _format(table: Table, config: DataConfig, passage: Sequence[str]) -> PromptFormat:
    layout = PromptFormat(config.prompt_format)
    if passage and not layout.has("context"):
        raise DataError(
            f'{table.origin}: data.prompt-format has no {{context}} for the column "{passage[0]}"; '
            "add it, or name data.instruction-field and data.response-field, which leaves it out"
        )
    return layout


def _completions(table: Table, config: DataConfig, found: RowFormat) -> tuple[Columns, list[int]]:
    """Texts are not stripped: the space between prompt and completion is part of one of them."""
    prompts, completions = (
        read_cells(table, name, f"data.{key}-field")
        for name, key in zip(found.columns, ("prompt", "completion"), strict=True)
    )
    if table.lenient:  # no row decides what the others hold
        of_messages = [config.template_for_all]
        if not config.template_for_all:
            prompts, completions = map(_only_texts, (prompts, completions))
    else:
        of_messages = [
            _hold_messages(table, name, cells)
            for name, cells in zip(found.columns, (prompts, completions), strict=True)
        ]
    if any(of_messages) or config.template_for_all:
        given = _messages_of(table, found.columns[0], prompts, USER)
        new = _messages_of(table, found.columns[1], completions, ASSISTANT)
        return _conversations(table, given, new)
    for name, key in zip(found.columns, ("prompt", "completion"), strict=True):
        read_texts(table, name, f"data.{key}-field")  # refuses other types
    prompts, completions = ([cell or "" for cell in cells] for cells in (prompts, completions))
    rows = _with_both(prompts, completions)
    return {
        "prompt": [prompts[row] for row in rows],
        "completion": [completions[row] for row in rows],
    }, rows


def _only_texts(cells: Sequence[Any]) -> list[Any]:
    """Return the cells' texts; "" for messages, so that their rows are left out."""
    return ["" if looks_like_messages(cell) else cell for cell in cells]


def _hold_messages(table: Table, column: str, cells: Sequence[Any]) -> bool:
    """Tell whether a column holds messages; refuse one that holds texts, too."""
    kinds = [(row, looks_like_messages(cell)) for row, cell in enumerate(cells) if cell]
    for row, kind in kinds:
        if kind != kinds[0][1]:
            there = "messages" if kind else "plain text"
            raise DataError(
                f'{table.where(row)}: column "{column}" holds {there}, unlike row '
                f"{table.first_row + kinds[0][0] + 1}; write all rows in one way"
            )
    return bool(kinds) and kinds[0][1]


def _messages(table: Table, config: DataConfig, found: RowFormat) -> tuple[Columns, list[int]]:
    cells = read_cells(table, found.columns[0], "data.messages-field")
    turns = _messages_of(table, found.columns[0], cells, "")
    return _conversations(table, [[] for _ in turns], turns)


def _texts(table: Table, config: DataConfig, found: RowFormat) -> tuple[Columns, list[int]]:
    if config.metric == "exact-match":
        raise DataError(
            f'{table.origin}: data.metric = "exact-match" with {found.described}: plain text has '
            'no answer to compare; choose data.metric = "auto"'
        )
    texts = read_texts(table, found.columns[0], "data.text-field")
    rows = [row for row, text in enumerate(texts) if text]
    return {"text": [texts[row] for row in rows]}, rows


_READERS: dict[str, Callable[[Table, DataConfig, RowFormat], tuple[Columns, list[int]]]] = {
    MESSAGES: _messages,
    COMPLETION: _completions,
    INSTRUCTION: _instructions,
    TEXT: _texts,
}


def _with_both(first: Sequence[str], second: Sequence[str]) -> list[int]:
    pairs = zip(first, second, strict=True)
    return [row for row, pair in enumerate(pairs) if all(text.strip() for text in pair)]


def _pairs(
    table: Table, asked: Sequence[str], answers: Sequence[str], rows: Sequence[int]
) -> Columns:
    turns = [[Turn(USER, asked[row]), Turn(ASSISTANT, answers[row])] for row in rows]
    return _columns(table, turns, [0] * len(turns), rows)


def _conversations(
    table: Table, given: Sequence[list[Turn]], new: Sequence[list[Turn]]
) -> tuple[Columns, list[int]]:
    """Keep the rows with an answer to learn; the ``given`` messages of a row are never trained."""
    learnable = [
        as_conversation("", [turn._replace(learnt=False) for turn in before] + after) is not None
        for before, after in zip(given, new, strict=True)
    ]
    rows = [row for row, good in enumerate(learnable) if good]
    turns = [[*given[row], *new[row]] for row in rows]
    return _columns(table, turns, [len(given[row]) for row in rows], rows), rows


def _columns(
    table: Table,
    conversations: Sequence[list[Turn]],
    num_given: list[int],
    rows: Sequence[int],
) -> Columns:
    return {
        "messages": [
            [{"role": turn.role, "content": turn.content} for turn in turns]
            for turns in conversations
        ],
        "num_given": num_given,
        "where": [table.where(row) for row in rows],
    }


def _messages_of(
    table: Table, column: str, cells: Sequence[Any], role_of_text: str
) -> list[list[Turn]]:
    """Read the messages of a column; with a role, a cell of plain text is one message of it."""
    return [_read_cell(table, column, cell, row, role_of_text) for row, cell in enumerate(cells)]


def _read_cell(table: Table, column: str, cell: Any, row: int, role_of_text: str) -> list[Turn]:
    if role_of_text and isinstance(cell, str) and not looks_like_messages(cell):
        return [Turn(role_of_text, cell)]
    try:
        return read_messages(cell, table.private)
    except DataError as error:
        raise DataError(f'{table.where(row)}: column "{column}": {error}') from None
