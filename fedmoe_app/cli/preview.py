"""``fedmoe preview``: examples as the model sees them, with what is learnt and what is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import NODES, DataConfig, RunConfig
from fedmoe_app.data.encoding import IGNORED_LABEL, Row
from fedmoe_app.data.language.encode import read_batch
from fedmoe_app.data.language.row_formats import recognise
from fedmoe_app.data.language.templates import adopt_template
from fedmoe_app.data.sources import load_node_file, load_text_data, read_tables
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.loading import PRESETS, is_encoder_decoder
from fedmoe_app.shown.terminal import Console, literal
from fedmoe_app.shown.text import visible
from fedmoe_app.tasks.base import Task, TaskSetting
from fedmoe_app.tasks.registry import make_task
from fedmoe_app.tasks.setup import head_of

_LEARNT = "bold green"
_MARKS = "⟦⟧"
_BETWEEN = f"between {_MARKS[0]} and {_MARKS[1]}"
_NO_LIMIT = 10**9

Segments = list[tuple[str, bool]]  # texts, and whether they are learnt


@dataclass(frozen=True)
class Example:
    """An encoded example.

    Attributes:
        parts: what the model reads, in order: one text, or an encoder's and a decoder's.
        num_tokens: tokens in them.
        num_learnt: tokens of them that the loss covers.
        cut_front, cut_end: tokens that are lost at the beginning and at the end.
        notes: what else there is to say, a line each.
    """

    parts: list[Segments]
    num_tokens: int
    num_learnt: int
    cut_front: int
    cut_end: int
    notes: list[str]


@dataclass(frozen=True)
class Preview:
    """Examples, and how they were read.

    Attributes:
        formats: a line a file: what its rows hold.
        encoding: how they become tokens.
        examples: the first ones.
    """

    formats: list[str]
    encoding: str
    examples: list[Example]


def preview_of(config: RunConfig, num_examples: int, path: Path | None = None) -> Preview:
    """Encode the first examples of the run's training data, or of a node's own file.

    Args:
        config: the run config.
        num_examples: at most so many.
        path: the file of a node.

    Raises:
        ConfigError: every node brings its own data, and no file is given.
        DataError, ModelNotFoundError, TokenizerError: data or tokenizer cannot be used.
    """
    train, label_names = _load(config.data, path)
    tokenizer = load_tokenizer(located(config.model.name), PRESETS)
    adopt_template(tokenizer, config.data)
    task = _task(config, tokenizer, label_names)
    data = config.data.model_copy(update={"max_length": _NO_LIMIT})
    unlimited = _task(config.model_copy(update={"data": data}), tokenizer, label_names)
    found = _examples(train, task, unlimited, label_names)
    examples = list(islice(found, num_examples))
    return Preview(_formats(config.data, path), _encoding(config, task, train), examples)


def print_preview(preview: Preview, console: Console) -> None:
    """Print examples; what is learnt is in colour, or between ⟦ and ⟧ where there is none."""
    marks = not console.is_terminal or console.no_color or console.color_system is None
    for line in [*preview.formats, preview.encoding]:
        _print(console, visible(line))
    _print(console, f"what is learnt stands {_BETWEEN if marks else 'in green'}")
    for number, example in enumerate(preview.examples, 1):
        _print(console, f"\nexample {number}: {_counted(example)}")
        names = ("encoder:", "decoder:") if len(example.parts) > 1 else ("",)
        for name, part in zip(names, example.parts, strict=True):
            if name:
                _print(console, name)
            _print_segments(console, part, marks)
        for note in example.notes:
            _print(console, f"({visible(note)})")


def _print(console: Console, text: str) -> None:
    """Print without line breaks of rich's own."""
    console.print(literal(text), soft_wrap=True)


def _load(config: DataConfig, path: Path | None) -> tuple[Dataset, Sequence[str]]:
    if path is None and config.source == NODES:
        raise ConfigError(
            'data.source = "nodes": every node brings its own data; name a file of one with '
            "--data-path FILE"
        )
    if path is None:
        data = load_text_data(config, with_test=False)
        return data.train, data.label_names
    labels = config.labels
    if config.kind.classifies and not labels:
        raise ConfigError(
            f'--data-path {path}: a node is told the classes; name them in data.label-names = "..."'
        )
    return load_node_file(path, config, labels), labels


def _formats(config: DataConfig, path: Path | None) -> list[str]:
    if config.kind.rows != "language":
        return [f"{path or config.source}: {config.task}"]
    tables = read_tables(config, path)
    return [f"{table.origin}: {recognise(table, config).described}" for table in tables]


def _task(config: RunConfig, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Task:
    encoder_decoder = is_encoder_decoder(located(config.model.name))
    head = head_of(config)
    return make_task(
        TaskSetting(config.data, tokenizer, encoder_decoder, head, labels, config.template)
    )


def _encoding(config: RunConfig, task: Task, train: Dataset) -> str:
    limit = f"at most {config.data.max_length} tokens (data.max-length) of {config.model.name}"
    described = task.described(train.column_names)
    return f"{described}; {limit}" if described else limit


def _examples(
    train: Dataset, task: Task, unlimited: Task, labels: Sequence[str]
) -> Iterator[Example]:
    for index in range(len(train)):
        one = train.select([index])
        rows, wholes = task.encode(one), unlimited.encode(one)
        if rows and wholes:  # others give no token to learn
            yield _example(task, rows[0], wholes[0], one, labels)


def _example(task: Task, row: Row, whole: Row, one: Dataset, labels: Sequence[str]) -> Example:
    notes = task.notes(row)
    row, whole = task.training_row(row), task.training_row(whole)
    if isinstance(row["labels"], int):
        notes.append(f"learnt: class {row['labels']}, {labels[row['labels']]}")
    if "messages" in one.column_names:
        (conversation,) = read_batch(one[:])
        left_out = len(one[0]["messages"]) - len(conversation.turns)
        if left_out:
            notes.append(
                f"messages left out: {left_out}, which are empty, before the first question or "
                "after the last answer"
            )
    front, end = _cut(task, row, whole, one.column_names)
    parts = _parts(task, row)
    tokens = _num_learnt(row)
    size = len(row["input_ids"]) + (tokens if task.encoder_decoder else 0)
    return Example(parts, size, tokens, front, end, notes)


def _num_learnt(row: Row) -> int:
    labels = row["labels"]
    return 0 if isinstance(labels, int) else sum(label != IGNORED_LABEL for label in labels)


def _cut(task: Task, row: Row, whole: Row, columns: Sequence[str]) -> tuple[int, int]:
    """Return how many tokens are lost at the beginning and at the end."""
    lost = len(whole["input_ids"]) - len(row["input_ids"])
    if task.encoder_decoder:  # only conversations lose their beginning
        answer = _num_learnt(whole) - _num_learnt(row)
        return (lost, answer) if "messages" in columns else (0, lost + answer)
    if isinstance(row["labels"], int) or "text" in columns:
        return 0, lost
    at_end = _answer_length(whole) - _answer_length(row)
    return lost - at_end, at_end


def _answer_length(row: Row) -> int:
    length = len(row["input_ids"])
    return length - row["prompt_length"] if "prompt_length" in row else _num_learnt(row)


def _parts(task: Task, row: Row) -> list[Segments]:
    ids, labels = row["input_ids"], row["labels"]
    if isinstance(labels, int):
        return [[(_text(task, ids), False)]]
    if task.encoder_decoder:
        return [[(_text(task, ids), False)], [(_text(task, labels), True)]]
    return [[(_text(task, part), learnt) for part, learnt in _runs(ids, labels)]]


def _text(task: Task, ids: list[int]) -> str:
    """Return the text of tokens, special ones included."""
    return str(task.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _runs(ids: Sequence[int], labels: Sequence[int]) -> list[tuple[list[int], bool]]:
    """Cut a row where learning begins or ends."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(ids, labels, strict=True):
        learnt = label != IGNORED_LABEL
        if not runs or runs[-1][1] != learnt:
            runs.append(([], learnt))
        runs[-1][0].append(token)
    return runs


def _counted(example: Example) -> str:
    lost = [
        f"{count} cut from the {place}"
        for count, place in ((example.cut_front, "beginning"), (example.cut_end, "end"))
        if count
    ]
    learnt = [f"{example.num_learnt} learnt"] if example.num_learnt else []
    return ", ".join([f"{example.num_tokens} tokens", *learnt, *lost])


def _print_segments(console: Console, segments: Segments, marks: bool) -> None:
    """Print texts one after the other, those that are learnt in colour or between marks."""
    for part, learnt in segments:
        for mark in _MARKS:  # of the text itself
            part = part.replace(mark, f"\\u{ord(mark):04x}")
        if learnt and marks:
            part = f"{_MARKS[0]}{part}{_MARKS[1]}"
        style = _LEARNT if learnt and not marks else ""
        console.print(literal(part, style), soft_wrap=True, end="")
    console.print()
