"""The shapes in which multiple-choice questions are published, and rows that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset

from fedmoe_app import DataError
from fedmoe_app.data.choices import find_shape, format_question
from fedmoe_app.data.columns import unify
from fedmoe_app.data.partitions import partition, partition_labels
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.data.table import Table
from tests.conftest import SHARED_DATA

from .conftest import MakeConfig

PLAIN = {"question": ["Wet?", "Hot?"], "choices": [["sun", "sea"], ["ice", "sun", "fog"]]}
CHOICE = {"task": "multiple-choice", "partition": "iid"}


def table(columns: dict[str, Any], private: bool = False) -> Table:
    return Table(Dataset.from_dict(columns), "some.jsonl", private)


@pytest.mark.parametrize(
    "columns",
    [
        PLAIN | {"label": [1, 1]},
        PLAIN | {"answer": [1, 1]},
        PLAIN | {"answer": ["B", "B"]},
        PLAIN | {"answer": ["1", "1"]},
        PLAIN | {"answer": ["sea", "sun"]},
        {"question": PLAIN["question"], "options": PLAIN["choices"], "answer": ["B", "B"]},
    ],
)
def test_known_shapes_and_answers(config: MakeConfig, columns: dict[str, Any]) -> None:
    assert unify(table(columns), config(**CHOICE), (), True)[:] == {
        "prompt": ["Question: Wet?\nAnswer:", "Question: Hot?\nAnswer:"],
        "options": [["sun", "sea"], ["ice", "sun", "fog"]],
        "answer": [1, 1],
    }


def test_arc_as_published_has_labels_beside_its_options(config: MakeConfig) -> None:
    cells = [
        {"text": ["sun", "sea"], "label": ["A", "B"]},
        {"text": ["ice", "sun"], "label": ["1", "2"]},
    ]
    data = table({"question": ["Wet?", "Hot?"], "choices": cells, "answerKey": ["B", "2"]})
    unified = unify(data, config(**CHOICE), (), True)
    assert unified["options"][:] == [["sun", "sea"], ["ice", "sun"]]
    assert unified["answer"][:] == [1, 1]


def test_mmlu_as_published_has_letters_for_class_names(config: MakeConfig) -> None:
    dataset = Dataset.from_dict(PLAIN | {"answer": [1, 0]})
    letters = dataset.cast_column("answer", ClassLabel(names=["A", "B", "C", "D"]))
    assert unify(Table(letters, "hub"), config(**CHOICE), (), True)["answer"][:] == [1, 0]


def test_piqa_as_published_has_a_column_for_each_option(config: MakeConfig) -> None:
    data = table({"goal": ["Dry up."], "sol1": ["Wait."], "sol2": ["Swim."], "label": [0]})
    unified = unify(data, config(**CHOICE), (), True)
    assert unified[:] == {
        "prompt": [format_question("Dry up.")],
        "options": [["Wait.", "Swim."]],
        "answer": [0],
    }


def test_own_column_names(config: MakeConfig) -> None:
    own = config(**CHOICE, question_field="q", options_field="a, b, c", answer_field="right")
    columns = {"q": ["Wet?", "Hot?"], "a": ["sun", "ice"], "b": ["sea", "sun"], "c": [None, "fog"]}
    data = table(columns | {"right": ["B", "C"]})
    unified = unify(data, own, (), True)
    assert unified["options"][:] == [["sun", "sea"], ["ice", "sun", "fog"]]
    assert unified["answer"][:] == [1, 2]
    only_answer = find_shape(table(PLAIN | {"key": [0, 0]}), config(**CHOICE, answer_field="key"))
    assert only_answer.columns == ("question", "choices", "key")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x"]}, "its columns text are not those of multiple choice"),
        (PLAIN | {"label": [1, 3]}, "row 2: answer '3' names none of the 3 options"),
        (PLAIN | {"label": [-1, 0]}, "row 1: answer '-1' names none of the 2 options"),
        (PLAIN | {"answer": ["A", "D"]}, "row 2: answer 'D' names none of the 3"),
        (PLAIN | {"answer": ["A", None]}, "row 2: answer None names none"),
        (PLAIN | {"choices": [["a"], ["b", "c"]], "label": [0, 0]}, "row 1: 1 options; a question"),
        (
            PLAIN | {"choices": [["a", "b"], ["b", " "]], "label": [0, 0]},
            "row 2: option 2 is empty",
        ),
        (PLAIN | {"choices": ["a, b", "c, d"], "label": [0, 0]}, "does not hold a list of texts"),
        (PLAIN | {"question": ["", " "], "label": [0, 0]}, 'every row is empty in "question"'),
    ],
)
def test_rows_that_cannot_be_used(
    config: MakeConfig, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        unify(table(columns), config(**CHOICE), (), True)


def test_the_answer_of_a_private_file_is_not_quoted(config: MakeConfig) -> None:
    data = table(PLAIN | {"answer": ["A", "secret"]}, private=True)
    with pytest.raises(DataError, match="row 2: its answer names none"):
        unify(data, config(**CHOICE), (), True)


def test_empty_questions_are_dropped_with_their_options(config: MakeConfig) -> None:
    data = table(PLAIN | {"question": ["", "Hot?"], "label": [9, 1]})
    unified = unify(data, config(**CHOICE), (), True)
    assert unified["options"][:] == [["ice", "sun", "fog"]]


@pytest.mark.skipif(not (SHARED_DATA / "arc").is_dir(), reason="shared/data is not there")
@pytest.mark.parametrize("test_file", ["arc/test", "mmlu/dev", "piqa/validation"])
def test_arc_trains_and_others_evaluate(config: MakeConfig, test_file: str) -> None:
    data_config = config(
        task="multiple-choice",
        partition="natural",
        partition_by="domain",
        source=str(SHARED_DATA / "arc/train.jsonl.gz"),
        test_source=str(SHARED_DATA / f"{test_file}.jsonl.gz"),
        max_train_examples=400,
    )
    data = load_text_data(data_config)
    assert data.test is not None and data.label_names == ()
    assert {len(options) for options in data.train["options"]} <= {3, 4, 5}
    for part in (data.train, data.test):
        assert all(
            0 <= answer < len(options)
            for answer, options in zip(part["answer"], part["options"], strict=True)
        )
    assert len(partition(data.train, data_config, 0, 2, seed=0)) > 200
    assert [list(counts) for counts in partition_labels(data.train, data_config, 2, 0)] == [
        ["arc_easy"],
        ["arc_challenge"],
    ]
