"""Which option an answer names, told from the whole column."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app import DataError
from fedmoe_app.data.answers import AnswerColumn, Options, read_answers
from fedmoe_app.data.columns import unify
from fedmoe_app.data.table import Table
from tests.data.conftest import MakeConfig

WORDS = ["red", "blue", "green", "black"]


def column(
    values: list[Any], options: list[list[str]], labels: list[list[str]] | None = None, **more: Any
) -> AnswerColumn:
    both = zip(options, labels or [[]] * len(options), strict=True)
    rows = range(len(values))
    return AnswerColumn(values, [Options(*pair) for pair in both], rows, "some.jsonl", **more)


def read(values: list[Any], *options: list[str], kind: str = "auto", **more: Any) -> list[int]:
    return read_answers(column(values, list(options), **more), kind)


def test_the_text_of_an_option_is_that_option() -> None:
    assert read(["2", "3"], ["2", "4", "3", "1"], ["1", "2", "0", "3"]) == [0, 3]
    assert read(["8"], ["6", "8", "10"]) == [1]
    assert read(["C", "D"], ["D", "C", "A", "B"], ["D", "A", "C", "B"]) == [1, 0]
    assert read([8, 10], ["6", "8", "10"], ["6", "8", "10"]) == [1, 2]  # numbers are their digits
    assert read([" blue", "True"], WORDS, ["True ", "False"]) == [1, 0]
    assert read(["007", "1.0"], ["7", "007"], ["1", "1.0"]) == [1, 1]
    assert read(["2 "], ["2", "2", "3"]) == [0]  # the same option twice


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ([0, 3, 1], [0, 3, 1]),
        (["0", "3", "1"], [0, 3, 1]),
        (["0", 3, "01"], [0, 3, 1]),
        (["A", "D", "B"], [0, 3, 1]),
        (["a", "D", "b"], [0, 3, 1]),
        (["red", "black", "blue"], [0, 3, 1]),
    ],
)
def test_the_one_reading_that_fits_all_rows_is_taken(values: list[Any], right: list[int]) -> None:
    assert read(values, WORDS, WORDS, WORDS) == right


def test_a_few_answers_that_are_texts_too_do_not_change_the_reading() -> None:
    # As in MMLU: some options are numbers or letters, but only the index fits all rows.
    numbers = [["3", "0", "1", "2"], *[WORDS] * 9]
    assert read([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], *numbers) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    letters = [["B", "A", "D", "C"], *[WORDS] * 4]
    assert read(["A", "B", "C", "D", "A"], *letters) == [0, 1, 2, 3, 0]


def test_own_labels_go_before_letters_and_indices() -> None:
    labels = [["A", "B", "C", "D"], ["1", "2", "3", "4"], ["B", "A", "D", "C"]]
    assert read(["B", "2", "A"], WORDS, WORDS, WORDS, labels=labels) == [1, 1, 1]
    assert read([2, "b"], WORDS, WORDS, labels=[labels[1], labels[0]]) == [1, 1]
    # Labels from 1 fit all rows, and so would an index from 0.
    assert read(["1", "3"], WORDS, WORDS, labels=[labels[1]] * 2) == [0, 2]
    # Answers that are no labels are read as without them.
    assert read(["0", "3"], WORDS, WORDS, labels=[labels[1]] * 2) == [0, 3]
    assert read(["A", "D"], WORDS, WORDS, labels=[labels[1]] * 2) == [0, 3]
    # A text that is the label of the same option is no question.
    assert read(["A", "2"], ["A", "B"], ["1", "2"], labels=[["A", "B"], ["1", "2"]]) == [0, 1]


def test_text_and_own_label_that_differ_are_asked_about() -> None:
    options, labels = [["2", "1"], ["1", "2"]], [["1", "2"], ["1", "2"]]
    asked = 'row 1: in column "answer".*different ones; set data.answer-kind = "text" or "letter"'
    with pytest.raises(DataError, match=asked):
        read(["1", "2"], *options, labels=labels)
    assert read(["1", "2"], *options, labels=labels, kind="text") == [1, 1]
    assert read(["1", "2"], *options, labels=labels, kind="letter") == [0, 1]


@pytest.mark.parametrize(
    ("values", "digits", "kind", "as_text"),
    [
        (["2", "0", "3"], ["2", "4", "3", "1"], "index", [0, None, None]),
        (["C", "A", "D"], ["D", "C", "A", "B"], "letter", [1, None, None]),
    ],
)
def test_a_column_of_texts_and_others_is_asked_about(
    values: list[str], digits: list[str], kind: str, as_text: list[int | None]
) -> None:
    # The first answer is an option's text, the others are none: both readings have a case.
    rows = [digits, WORDS, WORDS]
    asked = f'row 1: .*all 3 answers.*1 of them.*set data.answer-kind = "{kind}", or "text"'
    with pytest.raises(DataError, match=asked):
        read(values, *rows)
    assert read(values, *rows, kind=kind) == [2, 0, 3]
    with pytest.raises(DataError, match="row 2: .* is not the exact text of an option"):
        read(values, *rows, kind="text")


def test_a_key_leaves_only_its_reading() -> None:
    options = [["2", "4", "3", "1"], ["1", "2", "0", "3"]]
    assert read(["2", "3"], *options, kind="text") == [0, 3]
    assert read(["2", "3"], *options, kind="index") == [2, 3]
    with pytest.raises(DataError, match=r"row 1: answer '2' is not .* a letter from A.*4 options"):
        read(["2", "3"], *options, kind="letter")
    assert read(["C", "D"], ["D", "C", "A", "B"], WORDS, kind="letter") == [2, 3]
    with pytest.raises(DataError, match="row 2: answer 4 is not an index from 0"):
        read([3, 4], WORDS, WORDS, kind="index")
    with pytest.raises(DataError, match="row 2: its answer is not an index from 0"):
        read([3, 4], WORDS, WORDS, kind="index", private=True)


def test_a_warning_where_another_reading_would_differ(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(["red", "blue"], WORDS, WORDS)
        assert not caplog.records
        read(["2", "1"], ["2", "4", "3", "1"], ["0", "1"])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 of 2 rows (the first is row 1)" in message
    assert 'set data.answer-kind = "index"' in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 4], "row 2: answer 4 names none of the 4 options; give an index from 0"),
        ([-1, 0], "row 1: answer -1 names none"),
        (["A", None], "row 2: answer None names none"),
        (["A", ""], "row 2: answer '' names none"),
        (["red", "Blue"], "row 2: answer 'Blue' names none"),
        (["A", "E"], "row 2: answer 'E' names none"),
        (["A", "Ä"], "row 2: answer 'Ä' names none"),
        (["0", "1" * 5000], "row 2: .* names none"),
        (["0", "²"], "row 2: .* names none"),
        # Each fits some reading, none fits both.
        (["A", "0"], "not all of one kind: row 2 is not a letter from A, row 1 is not an index"),
        (["red", 3], "not all of one kind: row 2 is not the exact text of an option, row 1 is"),
    ],
)
def test_answers_that_no_reading_fits(values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(values, WORDS, WORDS)


def test_messages_name_rows_of_the_file_and_no_private_value() -> None:
    own = AnswerColumn(["A", "secret"], [Options(WORDS)] * 2, [4, 9], "x", private=True)
    with pytest.raises(DataError, match="x, row 10: its answer names none") as error:
        read_answers(own)
    assert "secret" not in str(error.value)


def test_an_index_that_may_count_from_one() -> None:
    with pytest.raises(DataError, match="answer 4 names none.*fit an index from 1: if so, sub"):
        read([1, 2, 3, 4], WORDS, WORDS, WORDS, WORDS)
    # Never 0 in 24 rows of four options: chance (3/4)^24 = 0.001; in 23 it is 0.0013.
    many = [1, 2, 3] * 8
    with pytest.raises(DataError, match="none of the 25 .* may count from 1; set data.answer-kind"):
        read([*many, 1], *[WORDS] * 25)
    assert read([*many, 1], *[WORDS] * 25, kind="index") == [*many, 1]
    assert read([*many, 0], *[WORDS] * 25) == [*many, 0]


def test_a_short_index_without_a_zero_is_read_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read([1, 2, 3], WORDS, WORDS, WORDS) == [1, 2, 3]
    assert "no answer" in caplog.text and "index from 0" in caplog.text


@given(st.data())
def test_each_way_of_writing_gives_the_same_options(data: st.DataObject) -> None:
    texts = st.text(st.characters(categories=("Ll",)), min_size=2, max_size=6)
    row = st.lists(texts, min_size=2, max_size=6, unique=True)
    options = data.draw(st.lists(row, min_size=1, max_size=8))
    right = [data.draw(st.integers(0, len(row) - 1)) for row in options]
    pairs = list(zip(options, right, strict=True))
    written = {
        "text": [row[at] for row, at in pairs],
        "index": [at for _, at in pairs],
        "letter": [chr(ord("a") + at) for _, at in pairs],
    }
    for kind, values in written.items():
        assert read(values, *options, kind=kind) == right
        if kind != "index":  # which may count from 1
            assert read(values, *options) == right
    labels = [[f"option {at}" for at in range(len(row))] for row in options]
    values = [f"Option {at}" for at in right]
    assert read(values, *options, labels=labels) == right
    assert read(values, *options, labels=labels, kind="letter") == right


def test_the_key_of_the_run_config(config: MakeConfig) -> None:
    table = Table(
        Dataset.from_dict(
            {"question": ["?"], "options": [["2", "4", "3", "1"]], "answer": ["2"]},
        ),
        "some.jsonl",
    )
    choice = {"task": "multiple-choice", "partition": "iid"}
    for kind, right in {"auto": 0, "text": 0, "index": 2}.items():
        data = unify(table, config(**choice, answer_kind=kind), (), True)
        assert data["answer"][:] == [right]
    with pytest.raises(DataError, match='data.answer-kind = "letter"'):
        unify(table, config(**choice, answer_kind="letter"), (), True)
    with pytest.raises(ValueError, match="answer-kind"):
        config(**choice, answer_kind="number")
