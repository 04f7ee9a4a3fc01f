"""Rows that stand or fall by themselves: a bad one is left out and changes no other."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedmoe_app import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.alone import each_alone
from fedmoe_app.data.sources import load_node_file
from tests.conftest import make_config

NAMES = ("sport", "food")
GOOD = [f"row {i}" for i in range(6)]
HEAD = b"text,label\n"


def config(**keys: Any) -> DataConfig:
    return make_config(**{"data.source": "nodes", "data.partition": "iid"} | keys).data


def read(path: Path, data: DataConfig | None = None, lenient: bool = True) -> list[dict[str, Any]]:
    dataset = load_node_file(path, data or config(), NAMES, lenient)
    return [dict(row) for row in dataset]


def csv_line(text: str, label: str = "food") -> bytes:
    return f"{text},{label}\n".encode()


def json_line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


CSV_BAD = [
    b"unknown class,physics\n",
    b"no class,\n",
    b"too few\n",
    b"too,many,fields\n",
    b'"never closed,food\n',
    b'"closed" too early,food\n',
    b'a space before, "food"\n',
    b"no UTF-8 \xff,food\n",
    b",food\n",
]
JSON_BAD = [
    json_line(text="unknown class", label="physics"),
    json_line(text="no class"),
    json_line(label="food"),
    json_line(text=["a", "list"], label="food"),
    json_line(text="half \ud800", label="food"),
    b'{"text": "not closed\n',
    b"[1, 2]\n",
    b"7\n",
    b'{"text": "no UTF-8 \xff", "label": "food"}\n',
    json_line(text="", label="food"),
]


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("bad", CSV_BAD)
def test_a_bad_line_of_csv_changes_no_other(tmp_path: Path, bad: bytes, place: int) -> None:
    lines = [csv_line(text) for text in GOOD]
    without, with_it = tmp_path / "without.csv", tmp_path / "with.csv"
    without.write_bytes(HEAD + b"".join(lines))
    with_it.write_bytes(HEAD + b"".join([*lines[:place], bad, *lines[place:]]))
    assert [row["text"] for row in read(without)] == GOOD
    assert read(with_it) == read(without) == read(without, lenient=False)


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("bad", JSON_BAD)
def test_a_bad_line_of_json_changes_no_other(tmp_path: Path, bad: bytes, place: int) -> None:
    lines = [json_line(text=text, label="food") for text in GOOD]
    without, with_it = tmp_path / "without.jsonl", tmp_path / "with.jsonl"
    without.write_bytes(b"".join(lines))
    with_it.write_bytes(b"".join([*lines[:place], bad, *lines[place:]]))
    assert [row["text"] for row in read(without)] == GOOD
    assert read(with_it) == read(without) == read(without, lenient=False)


def test_good_rows_of_csv_are_the_same_beside_a_bad_one(tmp_path: Path) -> None:
    """Quotes, doubled marks, line ends in a text, blank lines: what another reader could differ
    in."""
    rows = (
        b'"a, b",food\n"a ""word""",sport\r\n\n"two\nlines",food\n'
        + "ä 日本 \ufffd,sport\n".encode()
        + b'" ""outer"" ",food\n  spaces  ,sport\n'
    )
    good, mixed = tmp_path / "good.csv", tmp_path / "mixed.csv"
    good.write_bytes(HEAD + rows)
    mixed.write_bytes(HEAD + b"too,many,fields\n" + rows + b'"open,food\n')
    assert read(mixed) == read(good) == read(good, lenient=False)
    assert len(read(good)) == 6


def test_a_json_array_keeps_what_stands_before_a_fault(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "food"} for text in GOOD]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows[:2], 7, *rows[2:]]))
    assert [row["text"] for row in read(path)] == GOOD
    path.write_text(json.dumps(rows)[:-1] + ", {broken")
    assert [row["text"] for row in read(path)] == GOOD


def test_a_value_of_parquet_that_is_none_is_left_out(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff", b"fine"], pa.binary())
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": bad, "label": ["food"] * 3}), path)
    assert [row["text"] for row in read(path)] == ["good", "fine"]
    with pytest.raises(DataError):
        read(path, lenient=False)


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis"])
def test_bytes_that_are_not_in_the_encoding_spoil_their_row_alone(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": "food"}) + "\n" for text in GOOD]
    spoilt = lines[2].replace("row", "日x")
    whole = "".join([*lines[:3], spoilt, *lines[3:]]).encode(encoding)
    bad = {"utf-16": b"\x00\xd8", "shift_jis": b"\x81\xff"}[encoding]
    path.write_bytes(whole.replace("日".encode(encoding.replace("16", "16-le")), bad))
    found = read(path, config(**{"data.encoding": encoding}))
    assert [row["text"] for row in found] == GOOD


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b""),
        ("rows.jsonl", b"\n\n"),
        ("rows.jsonl", json_line(other=1)),
        ("rows.json", b"[]"),
        ("rows.csv", HEAD),
        ("rows.csv", HEAD + csv_line("a", "physics")),
    ],
)
def test_no_usable_row_is_no_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = load_node_file(tmp_path / name, config(), NAMES, lenient=True)
    assert len(dataset) == 0
    assert dataset.column_names == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.csv", b"words,label\na,food\n"), ("rows.txt", b"a"), ("no.csv", b"")],
)
def test_what_the_file_as_a_whole_is_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    """It tells of no row: the header, the ending, that it is there."""
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        read(tmp_path / name)


def test_what_a_number_means_is_told_row_by_row(tmp_path: Path) -> None:
    """Of a whole column one row decides which of label and label_name holds the classes."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": "a", "label": 0, "label_name": "sport"},
        {"text": "b", "label": "food", "label_name": "x"},
        {"text": "c", "label": 1, "label_name": "physics"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path) == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


LANGUAGE = {"data.task": "causal-lm"}
QUESTIONS = {
    "data.task": "multiple-choice",
    "data.question-field": "q",
    "data.options-field": "o",
    "data.answer-field": "a",
    "data.answer-kind": "letter",
}


@pytest.mark.parametrize(
    ("keys", "good", "bad"),
    [
        (
            LANGUAGE | {"data.row-format": "messages", "data.messages-field": "m"},
            {"m": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [{"m": [{"role": "stranger", "content": "q"}]}, {"m": "no messages"}, {"n": 1}],
        ),
        (
            LANGUAGE | {"data.row-format": "prompt-completion"},
            {"prompt": "q", "completion": " a"},
            [{"prompt": [{"role": "user", "content": "q"}], "completion": "a"}, {"prompt": "q"}],
        ),
        (
            LANGUAGE
            | {
                "data.row-format": "instruction",
                "data.instruction-field": "i",
                "data.response-field": "r",
            },
            {"i": "q", "r": "a"},
            [{"i": "q", "r": ["a"]}, {"output": "x"}, {"i": " ", "r": "a"}],
        ),
        (
            QUESTIONS,
            {"q": "which", "o": ["x", "y"], "a": "B"},
            [
                {"q": "which", "o": ["x"], "a": "A"},
                {"q": "which", "o": ["x", ""], "a": "A"},
                {"q": "which", "o": "x", "a": "A"},
                {"q": "which", "o": ["x", "y"], "a": "C"},
                {"q": "which", "o": ["x", "y"]},
            ],
        ),
    ],
)
def test_rows_of_every_kind_stand_by_themselves(
    tmp_path: Path, keys: dict[str, Any], good: dict[str, Any], bad: list[dict[str, Any]]
) -> None:
    path, data = tmp_path / "rows.jsonl", config(**keys)
    path.write_bytes(json_line(**good) * 3)
    expected = read(path, data)
    assert len(expected) == 3
    for row in bad:
        path.write_bytes(json_line(**good) + json_line(**row) + json_line(**good) * 2)
        assert [{**r, "where": 0} for r in read(path, data)] == [
            {**r, "where": 0} for r in expected
        ]
    path.write_bytes(json_line(**bad[0]))
    assert read(path, data) == []


def test_a_letter_is_a_label_where_the_row_has_one(tmp_path: Path) -> None:
    """All labels or all letters, one row more or less would decide of a whole column."""
    labelled = {"q": "q", "o": {"text": ["x", "y"], "label": ["B", "A"]}, "a": "A"}
    plain = {"q": "q", "o": ["x", "y"], "a": "A"}
    path = tmp_path / "rows.jsonl"
    for rows in ([labelled], [labelled, plain], [plain, labelled, plain]):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = [row["answer"] for row in read(path, config(**QUESTIONS))]
        assert found == [1 if row is labelled else 0 for row in rows]


def test_rows_that_fail_are_found_in_few_tries(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[tuple[int, int]] = []

    def attempt(start: int, stop: int) -> list[int]:
        tries.append((start, stop))
        if start <= 700 < stop:
            raise KeyError("a row's own text")
        return list(range(start, stop))

    with caplog.at_level(logging.WARNING, "fedmoe_app"):
        found = [row for _, rows in each_alone(1000, attempt, "rows.csv") for row in rows]
    assert found == [row for row in range(1000) if row != 700]
    assert len(tries) < 25
    assert "left out 1 of 1000 rows" in caplog.text
    assert "own text" not in caplog.text
