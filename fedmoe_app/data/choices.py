"""Multiple-choice questions in the shapes in which they are published.

The uniform columns are ``prompt`` (str), ``options`` (list of str, two or more) and ``answer``
(int, from 0). The prompt is ``Question: ...\\nAnswer:``, the layout of EleutherAI's
lm-evaluation-harness for ARC and PIQA, where the options are not listed: each is scored as the
text that follows.

A file's shape is recognised by its columns (:data:`SHAPES`), each file by itself, so that ARC can
train and MMLU or PIQA evaluate. ``data.question-field``, ``data.options-field`` and
``data.answer-field`` take the place of a shape's names where they are set.

Options stand in one column, as a list of texts or as ARC's ``{"text": [...], "label": [...]}``, or
each in a column of its own (``options-field = "sol1, sol2"``). How an answer names an option is
told from the whole column: :mod:`fedmoe_app.data.answers`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.lists import name_list
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.answers import AnswerColumn, Options, read_answers
from fedmoe_app.data.table import Table, check_column, column_names, read_labels, read_texts


@dataclass(frozen=True)
class Shape:
    """Names of the columns that hold question, options (one or several) and answer."""

    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (self.question, *self.options, self.answer)


SHAPES = (
    Shape("question", ("choices",), "label"),
    Shape("question", ("choices",), "answerKey"),  # ARC as published
    Shape("question", ("choices",), "answer"),  # MMLU as published
    Shape("question", ("options",), "answer"),
    Shape("goal", ("sol1", "sol2"), "label"),  # PIQA as published
)


def format_question(question: str) -> str:
    """Return the prompt that every option is scored as the continuation of."""
    return f"Question: {question.strip()}\nAnswer:"


def multiple_choice(table: Table, config: DataConfig) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the uniform columns and the numbers of the rows that they are made of.

    Rows with an empty question are left out.

    Raises:
        DataError: unknown columns, or a row with fewer than two options, an empty option or an
            answer that is none of them or cannot be told.
    """
    shape = find_shape(table, config)
    questions = read_texts(table, shape.question, "data.question-field")
    rows = [row for row, question in enumerate(questions) if question]
    options = _read_options(table, shape)
    values = read_labels(table, shape.answer, "data.answer-field")
    for row in rows:
        _check_options(table, options[row], row)
    answers = AnswerColumn(
        [values[row] for row in rows],
        [options[row] for row in rows],
        rows,
        table.origin,
        shape.answer,
        table.private,
        table.lenient,
    )
    return {
        "prompt": [format_question(questions[row]) for row in rows],
        "options": [list(options[row].texts) for row in rows],
        "answer": read_answers(answers, config.answer_kind),
    }, rows


def find_shape(table: Table, config: DataConfig) -> Shape:
    """Return the first known shape, with the config's names in it, that the table has.

    Raises:
        DataError: there is none.
    """
    if shape := shape_of(table.columns, config):
        return shape
    shapes = [_with_own_names(shape, config) for shape in SHAPES]
    known = "; ".join(dict.fromkeys(", ".join(shape.columns) for shape in shapes))
    named = "" if table.private else f" {column_names(table)}"
    raise DataError(
        f"{table.origin}: its columns{named} are not those of multiple choice "
        f"({known}); name them in data.question-field, data.options-field and data.answer-field"
    )


def shape_of(columns: Collection[str], config: DataConfig) -> Shape | None:
    """Return the first known shape, with the config's names in it, that these columns have."""
    shapes = (_with_own_names(shape, config) for shape in SHAPES)
    return next((shape for shape in shapes if set(shape.columns) <= set(columns)), None)


def _with_own_names(shape: Shape, config: DataConfig) -> Shape:
    own = name_list(config.options_field, "data.options-field")
    return Shape(
        config.question_field or shape.question,
        own or shape.options,
        config.answer_field or shape.answer,
    )


def _read_options(table: Table, shape: Shape) -> list[Options]:
    if len(shape.options) > 1:
        columns = [read_texts(table, name, "data.options-field") for name in shape.options]
        return [Options(_without_empty_end(texts), []) for texts in zip(*columns, strict=True)]
    column = shape.options[0]
    check_column(table, column, "data.options-field")
    cells = enumerate(table.dataset[column])
    return [_options_in_cell(table, column, cell, row) for row, cell in cells]


def _without_empty_end(texts: Sequence[str]) -> list[str]:
    """Drop the empty last columns of a row that has fewer options than others."""
    filled = [index for index, text in enumerate(texts) if text]
    return list(texts[: filled[-1] + 1]) if filled else []


def _options_in_cell(table: Table, column: str, cell: Any, row: int) -> Options:
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        cell = _from_json(cell)  # as lists come out of a file
    texts, labels = cell, []
    if isinstance(cell, Mapping) and {"text", "label"} <= cell.keys():
        texts, labels = cell["text"], cell["label"]
    plain = isinstance(texts, list) and all(isinstance(text, str | int | float) for text in texts)
    if not plain:
        raise DataError(
            f'{table.where(row)}: column "{column}" does not hold a list of texts; '
            'for options in columns of their own set data.options-field = "first, second"'
        )
    return Options([_as_text(text) for text in texts], [_as_text(label) for label in labels])


def _as_text(value: str | bool | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _from_json(cell: str) -> Any:
    try:
        return json.loads(cell, parse_int=str, parse_float=str)
    except ValueError:
        return cell


def _check_options(table: Table, options: Options, row: int) -> None:
    if len(options.texts) < 2:
        raise DataError(
            f"{table.where(row)}: {len(options.texts)} options; a question needs at least two"
        )
    if not all(options.texts):
        position = options.texts.index("") + 1
        raise DataError(f"{table.where(row)}: option {position} is empty")
