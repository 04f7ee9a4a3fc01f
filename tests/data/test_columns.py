from __future__ import annotations

import logging

import pytest
from datasets import ClassLabel, Dataset

from fedmoe_app import DataError
from fedmoe_app.data.columns import Table, find_label_names, format_prompt, partition_column, unify

from .conftest import MakeConfig


def table(**columns: object) -> Table:
    return Table(Dataset.from_dict(columns), "some.jsonl")


def test_text_labels_are_sorted(config: MakeConfig) -> None:
    data = table(text=["a", "b", "c"], label=["z", " y ", "z"])
    names = find_label_names([data], config())
    assert names == ("y", "z")
    unified = unify(data, config(), names, keep_partition_column=True)
    assert unified[:] == {"text": ["a", "b", "c"], "label": [1, 0, 1]}


def test_integer_labels_become_names(config: MakeConfig) -> None:
    data = table(text=["a", "b", "c"], label=[30, 2, 2])
    names = find_label_names([data], config())
    assert names == ("2", "30")
    assert unify(data, config(), names, True)["label"][:] == [1, 0, 0]


def test_integer_labels_are_positions_where_the_config_says_so(config: MakeConfig) -> None:
    data = table(text=["a", "b"], label=[1, 0])
    named = config(label_names="News, Sport")
    with pytest.raises(DataError, match=r"label '1' is not one of.*data.label-kind = .index."):
        unify(data, named, ("News", "Sport"), True)
    with pytest.raises(DataError, match="positions among data.label-names, which is empty"):
        find_label_names([data], config(label_kind="index"))
    given = config(label_names="News, Sport", label_kind="index")
    assert find_label_names([data], given) == ("News", "Sport")
    assert unify(data, given, ("News", "Sport"), True)["label"][:] == [1, 0]


def test_names_beside_integer_labels(config: MakeConfig) -> None:
    data = table(text=["a", "b", "c"], label=[1, 0, 1], label_name=["Zoo", "Sea", "Zoo"])
    assert find_label_names([data], config()) == ("Sea", "Zoo")
    gaps = table(text=["a"], label=[1], label_name=["Zoo"])
    assert find_label_names([gaps], config()) == ("1",)


def test_class_labels_bring_their_names(config: MakeConfig) -> None:
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
    data = Table(dataset.cast_column("label", ClassLabel(names=["p", "o"])), "hub")
    assert find_label_names([data], config()) == ("p", "o")
    assert unify(data, config(), ("p", "o"), True)["label"][:] == [1, 0]


def test_label_names_over_several_files(config: MakeConfig) -> None:
    tables = [table(text=["a"], label=["n"]), table(text=["b"], label=["m"])]
    assert find_label_names(tables, config()) == ("m", "n")


def test_a_repeated_label_name_is_refused(config: MakeConfig) -> None:
    with pytest.raises(DataError, match="stands there twice"):
        find_label_names([table(text=["a"], label=["x"])], config(label_names="x,y,x"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["x", "q"], r"some\.jsonl, row 2: label 'q' is not one of the 2 label names x, y"),
        ([0, 2], r"row 1: label '0' is not one of the 2 label names x, y"),
        ([-1, 0], r"row 1: label '-1' is not"),
        (["x", None], r"row 2: the label is missing"),
        (["x", " "], r"row 2: the label is missing"),
        ([0.5, 1.0], r"row 1: label '0.5' is not"),
        ([["x"], ["y"]], r'label-field = "label": some\.jsonl holds list'),
    ],
)
def test_bad_labels(config: MakeConfig, labels: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        unify(table(text=["a", "b"], label=labels), config(), ("x", "y"), True)


def test_a_missing_column_lists_the_columns(config: MakeConfig) -> None:
    data = table(body=["a"], label=["x"])
    with pytest.raises(DataError, match=r'data\.text-field = "text".*choose one of body, label'):
        unify(data, config(), ("x",), True)
    with pytest.raises(DataError, match=r'data\.label-field = "kind".*choose one of body, label'):
        find_label_names([data], config(label_field="kind"))


def test_numbers_are_text_and_lists_are_not(config: MakeConfig) -> None:
    numbers = table(text=[1, 2], label=["x", "x"])
    assert unify(numbers, config(), ("x",), True)["text"][:] == ["1", "2"]
    with pytest.raises(DataError, match='"text": some.jsonl holds list.*, not text'):
        unify(table(text=[["a"]], label=["x"]), config(), ("x",), True)


def test_empty_texts_are_dropped_with_a_warning(
    config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    data = table(text=["a", " ", None, "d"], label=["x", "x", None, "y"])
    with caplog.at_level(logging.WARNING):
        unified = unify(data, config(), ("x", "y"), True)
    assert unified[:] == {"text": ["a", "d"], "label": [0, 1]}
    assert "some.jsonl: dropped 2 of 4 rows" in caplog.text
    assert "the first is row 2" in caplog.text
    with pytest.raises(DataError, match="every row is empty"):
        unify(table(text=[" "], label=["x"]), config(), ("x",), True)


def test_the_partition_column_is_kept(config: MakeConfig) -> None:
    natural = config(partition="natural", partition_by="site")
    data = table(text=["a", "b"], label=["x", "x"], site=["n", "s"])
    assert partition_column(natural) == "site"
    assert unify(data, natural, ("x",), True)["site"][:] == ["n", "s"]
    assert unify(data, natural, ("x",), False).column_names == ["text", "label"]
    assert unify(data, config(partition="iid"), ("x",), True).column_names == ["text", "label"]


def test_the_label_column_may_have_another_name(config: MakeConfig) -> None:
    other = config(label_field="intent", text_field="query")
    assert partition_column(other) == "label"
    assert unify(table(query=["a"], intent=["x"]), other, ("x",), True)[:] == {
        "text": ["a"],
        "label": [0],
    }


def test_bad_partition_columns(config: MakeConfig) -> None:
    data = table(text=["a", "b"], label=["p", "q"], intent=["x", "x"], site=["n", None])
    with pytest.raises(DataError, match='row 2: column "site" has no value'):
        unify(data, config(partition="natural", partition_by="site"), ("p", "q"), True)
    with pytest.raises(DataError, match='data.partition-by = "town".*choose one of text, label'):
        unify(data, config(partition="natural", partition_by="town"), ("p", "q"), True)
    taken = config(label_field="intent", partition="natural", partition_by="label")
    with pytest.raises(DataError, match='"label": this name is taken'):
        unify(data, taken, ("x",), True)


def test_causal_lm(config: MakeConfig) -> None:
    lm = config(
        task="causal-lm", context_field="context", partition="natural", partition_by="label"
    )
    data = table(
        instruction=["Add.", "Hi?", "", "?"],
        context=["1 2", None, "", ""],
        response=[" 3", "Yes", "lost", None],
        label=["m", "g", "g", "g"],
    )
    unified = unify(data, lm, (), True)
    assert unified[:] == {
        "prompt": [
            "### Instruction:\nAdd.\n\n### Context:\n1 2\n\n### Response:\n",
            "### Instruction:\nHi?\n\n### Response:\n",
        ],
        "response": ["3", "Yes"],
        "label": ["m", "g"],
    }
    assert unified[0]["prompt"] == format_prompt("Add.", "1 2")
