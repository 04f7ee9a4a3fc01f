"""Multiple-choice questions in the shapes in which they are published.

The uniform columns are ``prompt`` (str), ``options`` (list of str, two or more) and ``answer``
(int, from 0). The prompt is ``Question: ...\\nAnswer:``, the layout of EleutherAI's
lm-evaluation-harness for ARC and PIQA, where the options are not listed: each is scored as the
text that follows.

A file's shape is recognised by its columns (:data:`SHAPES`), each file by itself, so that ARC can
train and MMLU or PIQA evaluate. ``data.question-field``, ``data.options-field`` and
``data.answer-field`` take the place of a shape's names where they are set.

Options stand in one column, as a list of texts or as ARC's ``{"text": [...], "label": [...]}``, or
each in a column of its own (``options-field = "sol1, sol2"``). The answer is an index from 0, one
of ARC's labels, a letter from A, or the option's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe_app.config import DataConfig
from fedmoe_app.data.errors import DataError
from fedmoe_app.data.names import name_list
from fedmoe_app.data.table import (
    Table,
    column_names,
    non_empty,
    read_feature,
    read_labels,
    read_texts,
)


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


@dataclass(frozen=True)
class Options:
    """The options of a row and, where it has them, their labels."""

    texts: list[str]
    labels: list[str]


def format_question(question: str) -> str:
    """Return the prompt that every option is scored as the continuation of."""
    return f"Question: {question.strip()}\nAnswer:"


def multiple_choice(table: Table, config: DataConfig) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the uniform columns and the numbers of the rows that they are made of.

    Rows with an empty question are dropped, with a warning.

    Raises:
        DataError: unknown columns, or a row with fewer than two options, an empty option or an
            answer that is none of them.
    """
    shape = find_shape(table, config)
    questions = read_texts(table, shape.question, "data.question-field")
    rows = non_empty(table, questions, [shape.question])
    options = _read_options(table, shape)
    answers = read_labels(table, shape.answer, "data.answer-field")
    for row in rows:
        _check_options(table, options[row], row)
    return {
        "prompt": [format_question(questions[row]) for row in rows],
        "options": [options[row].texts for row in rows],
        "answer": [_answer(table, answers[row], options[row], row) for row in rows],
    }, rows


def find_shape(table: Table, config: DataConfig) -> Shape:
    """Return the first known shape, with the config's names in it, that the table has.

    Raises:
        DataError: there is none.
    """
    features = table.dataset.features
    shapes = [_with_own_names(shape, config) for shape in SHAPES]
    for shape in shapes:
        if all(column in features for column in shape.columns):
            return shape
    known = "; ".join(dict.fromkeys(", ".join(shape.columns) for shape in shapes))
    named = "" if table.private else f" {column_names(table)}"
    raise DataError(
        f"{table.origin}: its columns{named} are not those of multiple choice "
        f"({known}); name them in data.question-field, data.options-field and data.answer-field"
    )


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
    read_feature(table, column, "data.options-field")
    cells = enumerate(table.dataset[column])
    return [_options_in_cell(table, column, cell, row) for row, cell in cells]


def _without_empty_end(texts: Sequence[str]) -> list[str]:
    """Drop the empty last columns of a row that has fewer options than others."""
    filled = [index for index, text in enumerate(texts) if text]
    return list(texts[: filled[-1] + 1]) if filled else []


def _options_in_cell(table: Table, column: str, cell: Any, row: int) -> Options:
    texts, labels = cell, []
    if isinstance(cell, Mapping) and {"text", "label"} <= cell.keys():
        texts, labels = cell["text"], cell["label"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f'{table.origin}, row {row + 1}: column "{column}" does not hold a list of texts; '
            'for options in columns of their own set data.options-field = "first, second"'
        )
    return Options([text.strip() for text in texts], [str(label) for label in labels])


def _check_options(table: Table, options: Options, row: int) -> None:
    if len(options.texts) < 2:
        raise DataError(
            f"{table.origin}, row {row + 1}: {len(options.texts)} options; a question needs at "
            "least two"
        )
    if not all(options.texts):
        position = options.texts.index("") + 1
        raise DataError(f"{table.origin}, row {row + 1}: option {position} is empty")


def _answer(table: Table, value: str | int | None, options: Options, row: int) -> int:
    """Return the index of the right option; the first reading that fits counts."""
    index = _index_of(value, options)
    if not 0 <= index < len(options.texts):
        answer = "its answer" if table.private else f"answer {value!r}"
        raise DataError(
            f"{table.origin}, row {row + 1}: {answer} names none of the {len(options.texts)} "
            "options; give an index from 0, a letter from A or the option's text"
        )
    return index


def _index_of(value: str | int | None, options: Options) -> int:
    if value is None or isinstance(value, int):
        return -1 if value is None else value
    if value in options.labels:
        return options.labels.index(value)
    if len(value) == 1 and "A" <= value <= "Z":
        return ord(value) - ord("A")
    if value.isdecimal():
        return int(value)
    return options.texts.index(value) if value in options.texts else -1
