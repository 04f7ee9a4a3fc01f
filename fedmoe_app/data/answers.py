"""Which option is right: the answers of a multiple-choice file, read as one column.

An answer can be written as the option's text, as the label that the option has in the file itself
(ARC's ``{"text": [...], "label": [...]}``), as a letter from A, or as an index from 0. A column is
written in one of these ways, so one reading must fit all of its rows:

- The only one that fits is taken.
- The options' own labels go before letters and indices: a file that has labels means them.
- The text goes before letters and indices, too: where each answer is the exact text of an option,
  that is no chance. A warning says in how many rows another reading would give another option.
- The run stops and asks for ``data.answer-kind``, which names the only reading that is then tried,
  where it cannot be told: text and own labels both fit and differ in any row; an index or a letter
  fits, but many of the answers are the text of another option; an index from 0 is never 0 in so
  many rows that it may count from 1.

A number and its digits are the same answer; case counts in texts only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedmoe_app.config.errors import DataError

_log = logging.getLogger(__name__)
_MAX_INDEX_DIGITS = 9
# An index from 0 without a single 0 is doubted where chance would do this less often.
_DOUBT = 0.001
# Share of rows whose answer, read as index or letter, is the exact text of another option, from
# which on that is no accident. MMLU's mathematics has 0.1, all of MMLU 0.005.
_MANY_TEXTS = 0.25

Picks = list[int | None]  # the option of each row, from 0; None where a reading does not fit


@dataclass(frozen=True)
class Options:
    """The options of a row and, where it has them, their labels."""

    texts: Sequence[str]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class AnswerColumn:
    """The answers of a file, and the options that they choose from.

    Attributes:
        values: an answer for each row; None or "" where it is missing.
        options: of the same rows, each with two or more texts.
        rows: their numbers in the file, from 0, for messages.
        origin: the file's name, for messages.
        name: the column's name, for messages.
        private: messages must not quote a value.
        by_row: how an answer names its option is told of each row by itself, as far as ``kind``
            leaves that open.
    """

    values: Sequence[str | int | None]
    options: Sequence[Options]
    rows: Sequence[int]
    origin: str
    name: str = "answer"
    private: bool = False
    by_row: bool = False
    texts: list[str] = field(init=False)  # of the values

    def __post_init__(self) -> None:
        texts = ["" if value is None else str(value).strip() for value in self.values]
        object.__setattr__(self, "texts", texts)


def read_answers(column: AnswerColumn, kind: str = "auto") -> list[int]:
    """Return the right option of each row, from 0.

    Args:
        column: answers and options.
        kind: ``data.answer-kind``: "auto", "text", "index" or "letter" (which also means the
            options' own labels).

    Raises:
        DataError: naming the first row that the reading does not fit, or, with "auto", that more
            than one reading fits and which cannot be told.
    """
    if kind != "auto":
        return _read_as(column, kind)
    found = {name: _read(column, name) for name in _READINGS}
    fitting = {name: picks for name, picks in found.items() if None not in picks}
    if not fitting:
        raise DataError(_no_reading(column, found))
    if "label" in fitting:
        _check_labels(column, fitting)
    name = next(name for name in ("label", "text", "letter", "index") if name in fitting)
    if name == "text":
        _tell_others(column, fitting)
    if name in ("letter", "index"):
        _check_texts(column, found, name)
    if name == "index":
        _check_start(column)
    return _complete(fitting[name])


def _by_text(answer: str, options: Options) -> int | None:
    return _place(answer, [text.strip() for text in options.texts])


def _by_label(answer: str, options: Options) -> int | None:
    labels = [str(label).strip() for label in options.labels[: len(options.texts)]]
    exact = _place(answer, labels)
    folded = [label.casefold() for label in labels]
    return _place(answer.casefold(), folded) if exact is None else exact


def _by_letter(answer: str, options: Options) -> int | None:
    if len(answer) != 1 or not answer.isascii() or not answer.isalpha():
        return None
    return _within(ord(answer.upper()) - ord("A"), options)


def _by_index(answer: str, options: Options) -> int | None:
    return _within(_whole(answer), options)


_READINGS: dict[str, Callable[[str, Options], int | None]] = {
    "text": _by_text,
    "label": _by_label,
    "letter": _by_letter,
    "index": _by_index,
}
# What each reading takes, for messages.
_TAKES = {
    "text": "the exact text of an option",
    "label": "the label of an option",
    "letter": "a letter from A",
    "index": "an index from 0",
}


def _place(answer: str, names: Sequence[str]) -> int | None:
    return names.index(answer) if answer and answer in names else None


def _whole(answer: str) -> int:
    """Return the number that an answer's digits give, -1 where it is none."""
    fits = answer.isascii() and answer.isdecimal() and len(answer) <= _MAX_INDEX_DIGITS
    return int(answer) if fits else -1


def _within(index: int, options: Options) -> int | None:
    return index if 0 <= index < len(options.texts) else None


def _read(column: AnswerColumn, name: str) -> Picks:
    reading = _READINGS[name]
    return [reading(*pair) for pair in zip(column.texts, column.options, strict=True)]


def _complete(picks: Picks) -> list[int]:
    return [pick for pick in picks if pick is not None]


def _read_as(column: AnswerColumn, kind: str) -> list[int]:
    names = ("label", "letter") if kind == "letter" else (kind,)
    found = {name: _read(column, name) for name in names}
    if column.by_row and len(found) > 1:
        pairs = zip(*found.values(), strict=True)
        found = {kind: [letter if label is None else label for label, letter in pairs]}
    for picks in found.values():
        if None not in picks:
            return _complete(picks)
    at = max(_first_missing(picks) for picks in found.values())
    takes = " or ".join(_TAKES[name] for name in names)
    raise DataError(
        f'{_where(column, at)} is not {takes}, which data.answer-kind = "{kind}" asks for '
        f"(the row has {len(column.options[at].texts)} options)"
    )


def _first_missing(picks: Picks) -> int:
    return picks.index(None)


def _where(column: AnswerColumn, at: int) -> str:
    value = column.values[at]
    answer = "its answer" if column.private else f"answer {value!r}"
    return f"{column.origin}, row {column.rows[at] + 1}: {answer}"


def _no_reading(column: AnswerColumn, found: dict[str, Picks]) -> str:
    """Say which row fits no reading, or, where each fits one, where each reading ends."""
    picks_by_row = list(zip(*found.values(), strict=True))
    for at, picks in enumerate(picks_by_row):
        if all(pick is None for pick in picks):
            return (
                f"{_where(column, at)} names none of the {len(column.options[at].texts)} options; "
                f"give an index from 0, a letter from A or the option's text{_from_one(column)}"
            )
    ends = ", ".join(
        f"row {column.rows[_first_missing(picks)] + 1} is not {_TAKES[name]}"
        for name, picks in found.items()
        if any(pick is not None for pick in picks)
    )
    return (
        f'{column.origin}: the answers in column "{column.name}" are not all of one kind: {ends}; '
        "write all as index from 0, as letter from A or as the option's text"
    )


def _from_one(column: AnswerColumn) -> str:
    """A hint where the answers would all be indices if they counted from 1."""
    pairs = zip(column.texts, column.options, strict=True)
    if all(1 <= _whole(answer) <= len(options.texts) for answer, options in pairs):
        return "; all answers here would fit an index from 1: if so, subtract 1 from each"
    return ""


def _check_labels(column: AnswerColumn, fitting: dict[str, Picks]) -> None:
    """Refuse to choose between an option's text and the label of another one."""
    differing = _differing(fitting["label"], fitting.get("text", fitting["label"]))
    if differing:
        raise DataError(
            f'{column.origin}, row {column.rows[differing[0]] + 1}: in column "{column.name}" '
            "each answer is both the text of an option and the label of one, here of different "
            'ones; set data.answer-kind = "text" or "letter" (the labels)'
        )


def _differing(picks: Picks, others: Picks) -> list[int]:
    pairs = zip(picks, others, strict=True)
    return [at for at, (pick, other) in enumerate(pairs) if pick != other]


def _check_texts(column: AnswerColumn, found: dict[str, Picks], name: str) -> None:
    """Refuse an index or a letter where many answers are the text of another option."""
    differing = [
        at for at in _differing(found[name], found["text"]) if found["text"][at] is not None
    ]
    if differing and len(differing) >= _MANY_TEXTS * len(column.texts):
        raise DataError(
            f'{column.origin}, row {column.rows[differing[0]] + 1}: in column "{column.name}" all '
            f"{len(column.texts)} answers can be read as {_TAKES[name]}, but {len(differing)} of "
            "them (this is the first) are the exact text of another option; set data.answer-kind = "
            f'"{name}", or "text" if texts are meant and the other rows are wrong'
        )


def _tell_others(column: AnswerColumn, fitting: dict[str, Picks]) -> None:
    for name, picks in fitting.items():
        if differing := _differing(picks, fitting["text"]):
            _log.warning(
                '%s: the answers in column "%s" are read as the exact texts of options; %d of %d '
                "rows (the first is row %d) would have another one right if read as %s: if so, "
                'set data.answer-kind = "%s"',
                column.origin,
                column.name,
                len(differing),
                len(picks),
                column.rows[differing[0]] + 1,
                _TAKES[name],
                name,
            )


def _check_start(column: AnswerColumn) -> None:
    """Doubt an index from 0 that is never 0: it may count from 1."""
    if any(_whole(answer) == 0 for answer in column.texts):
        return
    chance = math.prod(1 - 1 / len(options.texts) for options in column.options)
    if chance < _DOUBT:
        raise DataError(
            f'{column.origin}: none of the {len(column.texts)} answers in column "{column.name}" '
            'is 0, so they may count from 1; set data.answer-kind = "index" if they count from 0, '
            "else subtract 1 from each"
        )
    _log.warning(
        '%s: no answer in column "%s" is 0; they are read as an index from 0, as always',
        column.origin,
        column.name,
    )
