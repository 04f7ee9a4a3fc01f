"""Files as people have them: the rows that stand in them, or an error with the place.

Each input failed once, mostly silently: guessed types, shifted labels, names taken as patterns.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedmoe_app import DataError
from fedmoe_app.data.files import Dialect, column_names, read_columns, read_file
from fedmoe_app.data.reading.columns import Asked
from fedmoe_app.data.sources import load_node_file, load_text_data

from .conftest import MakeConfig

Row = dict[str, object]


def jsonl(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def text(path: Path, content: str, encoding: str = "utf-8") -> str:
    path.write_bytes(content.encode(encoding))
    return str(path)


def labels_of(config: MakeConfig, source: str, **more: object) -> list[str]:
    """The class name of each training row."""
    data = load_text_data(config(source=source, partition="iid", **more))
    return [data.label_names[index] for index in data.train["label"]]


# Labels are names.


def test_a_test_label_is_the_class_of_its_name(tmp_path: Path, config: MakeConfig) -> None:
    train = text(tmp_path / "a.csv", "text,label\n" + "a,1\nb,2\nc,3\nd,unrated\n")
    test = text(tmp_path / "t.csv", "text,label\na,1\nb,2\nc,3\n")
    data = load_text_data(config(source=train, test_source=test))
    assert data.label_names == ("1", "2", "3", "unrated")
    assert data.test is not None and data.test["label"][:] == [0, 1, 2]


def test_a_nodes_integers_are_names_too(tmp_path: Path, config: MakeConfig) -> None:
    file = text(tmp_path / "n.csv", "text,label\na,1\nb,2\nc,3\n")
    names = ("1", "2", "3", "unrated")
    given = config(source="nodes", label_names=",".join(names))
    assert load_node_file(file, given, names)["label"][:] == [0, 1, 2]


def test_integers_in_one_file_and_words_in_another(tmp_path: Path, config: MakeConfig) -> None:
    first = text(tmp_path / "a.csv", "text,label\na,1\nb,2\nc,3\n")
    second = text(tmp_path / "b.csv", "text,label\na,1\nunclear,unrated\n")
    data = load_text_data(config(source=f"{first},{second}", partition="iid"))
    assert data.label_names == ("1", "2", "3", "unrated")
    assert data.train["label"][:] == [0, 1, 2, 0, 3]


def test_names_beside_the_labels_hold_in_every_file(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[Row] = [
        {"text": "a", "label": 1, "label_name": "sea"},
        {"text": "b", "label": 0, "label_name": "zoo"},
    ]
    train, node = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "n.jsonl", rows[::-1])
    assert labels_of(config, train) == ["sea", "zoo"]
    given = config(source="nodes", label_names="sea, zoo")  # another order than the file's
    assert load_node_file(node, given, ("sea", "zoo"))["label"][:] == [1, 0]


def test_positions_only_where_declared(tmp_path: Path, config: MakeConfig) -> None:
    file = text(tmp_path / "a.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(DataError, match=r"row 1: label '1' is not one of the 2 .*label-kind"):
        load_text_data(config(source=file, label_names="no, yes"))
    assert labels_of(config, file, label_names="no, yes", label_kind="index") == ["yes", "no"]
    with pytest.raises(DataError, match=r"row 2: label '2' is not an index from 0 to 1"):
        wrong = text(tmp_path / "b.csv", "text,label\na,1\nb,2\n")
        load_text_data(config(source=wrong, label_names="no, yes", label_kind="index"))
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    declared = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    declared.to_parquet(tmp_path / "a.parquet")
    assert labels_of(config, str(tmp_path / "a.parquet")) == ["yes", "no"]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("zeros.csv", "text,label\na,001\nb,010\nc,100\n", ["001", "010", "100"]),
        ("a.csv", "text,label\n2024-01-01,2024-01-05\nb,True\n", ["2024-01-05", "True"]),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "1"}\n', ["1", "1"]),
        (
            "a.jsonl",
            '{"text": "a", "label": true}\n{"text": "b", "label": false}\n',
            ["true", "false"],
        ),
        ("a.jsonl", '{"text": "a", "label": 1.0}\n{"text": "b", "label": 1e3}\n', ["1.0", "1e3"]),
        ("a.json", '[{"text": "a", "label": 7}, {"text": "b", "label": "NA"}]', ["7", "NA"]),
    ],
)
def test_labels_stand_as_in_the_file(
    tmp_path: Path, config: MakeConfig, name: str, content: str, names: list[str]
) -> None:
    assert labels_of(config, text(tmp_path / name, content)) == names


def test_truth_values_are_named_as_json_writes_them(tmp_path: Path, config: MakeConfig) -> None:
    file = jsonl(
        tmp_path / "a.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}]
    )
    data = load_text_data(config(source=file, label_names="false,true"))
    assert data.train["label"][:] == [1, 0]


@pytest.mark.parametrize("value", ["", "null", "NaN"])
def test_a_missing_label_names_row_and_column(
    tmp_path: Path, config: MakeConfig, value: str
) -> None:
    content = f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {value}}}\n'
    file = text(tmp_path / "m.jsonl", content)
    if not value:
        file = text(tmp_path / "m.csv", "text,label\na,1\nb,\nc,0\n")
    with pytest.raises(DataError, match=r'm\.\w+, row 2: the label is missing \(column "label"\)'):
        load_text_data(config(source=file))


def test_texts_stand_as_in_the_file(tmp_path: Path, config: MakeConfig) -> None:
    dates = jsonl(
        tmp_path / "d.jsonl", [{"text": "2024-01-01", "label": "x"}, {"text": 404, "label": "y"}]
    )
    assert load_text_data(config(source=dates)).train["text"][:] == ["2024-01-01", "404"]
    numbers = text(tmp_path / "n.csv", "text,label\n123,x\n0456,y\n")
    assert load_text_data(config(source=numbers)).train["text"][:] == ["123", "0456"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_list_is_no_text(tmp_path: Path, config: MakeConfig, name: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": ["b"], "label": "x"}]
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith("n") else "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r'(line|row) 2: column "text" holds a list, not a text'):
        load_text_data(config(source=str(path)))


# Columns that nobody named.


def many(last: Row, first: Row) -> list[Row]:
    """More rows than a library guesses types by, with one odd one at the end."""
    pad = "lorem ipsum " * 90
    rows: list[Row] = [{"text": f"{pad}{i}", "label": "xy"[i % 2]} | first for i in range(10_500)]
    return [*rows, {"text": "last", "label": "x"} | last]


@pytest.mark.parametrize(
    ("last", "first"),
    [
        ({"note": "seen"}, {"note": None}),
        ({"note": "seen"}, {}),
        ({"note": {"a": [1]}}, {"note": 1}),
        ({"note": "n/a"}, {"note": 2.5}),
    ],
)
def test_other_columns_refuse_no_file(
    tmp_path: Path, config: MakeConfig, last: Row, first: Row
) -> None:
    file = jsonl(tmp_path / "a.jsonl", many(last, first))
    data = load_text_data(config(source=file))
    assert (len(data.train), data.train[-1]["text"]) == (10_501, "last")


def test_a_column_that_changes_its_look_after_ten_megabytes(
    tmp_path: Path, config: MakeConfig
) -> None:
    pad = "x" * 1000
    rows = [f"{i},x,{pad}\n" for i in range(12_000)]
    file = text(tmp_path / "a.csv", "text,label,pad\n" + "".join(rows) + "two words,y,\n")
    data = load_text_data(config(source=file))
    assert (len(data.train), data.train[-1]["text"]) == (12_001, "two words")


def test_an_optional_context_that_begins_empty(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[Row] = [{"instruction": "i", "response": "r", "context": None}] * 3000
    rows.append({"instruction": "last", "response": "x", "context": "seen"})
    lm = config(
        source=jsonl(tmp_path / "a.jsonl", rows),
        task="causal-lm",
        partition="iid",
        context_field="context",
    )
    assert "### Context:\nseen" in load_text_data(lm).train[-1]["prompt"]


@pytest.mark.parametrize("kind", ["string_view", "dictionary", "large_string", "binary"])
def test_parquet_texts_of_all_kinds(tmp_path: Path, config: MakeConfig, kind: str) -> None:
    texts = pa.array(["a", "b", "a"])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    table = pa.table({"text": column, "label": pa.array(["x", "y", "x"]), "id": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = load_text_data(config(source=str(tmp_path / "a.parquet")))
    assert data.train[:] == {"text": ["a", "b", "a"], "label": [0, 1, 0]}


def test_parquet_of_other_types_reads_as_its_json_would(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "a": [1, None],
        "b": [1.0, float("nan")],
        "c": [True, False],
        "d": [["x", "y"], []],
        "e": [{"k": 1}, None],
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_file(str(tmp_path / "a.parquet"))[:] == {
        "a": ["1", None],
        "b": ["1.0", None],
        "c": ["true", "false"],
        "d": ['["x","y"]', "[]"],
        "e": ['{"k":"1"}', None],
    }


# Rows of another width than the header.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label\nm 0,ham,2024-01\nm 1,spam,2024-02\n",
            "line 2 has 3 fields, the header has 2",
        ),
        ("text,label\ndear all, m 0,ham\n", "line 2 has 3 fields.*must stand in quotation marks"),
        ("text,label\na,ham,\nb,spam,\n", "line 2 has 3 fields.*ends in a separator too many"),
        (
            "# exported 2024\ntext,label\na,x\n",
            r"the header \(# exported 2024\) has none of",
        ),
        ('text,label\n"two\nlines",x\n\nb\n', "line 5 has 1 field, the header has 2"),
        ('text,label\n"open,x\nb,y\n', "line 2: a quotation mark is opened there and never closed"),
        ('text,label\na,x\n"say \\"hi\\" to",y\n', "line 3: text follows a closing quotation mark"),
        ("text,text,label\na,b,x\n", 'column "text" stands twice in the header'),
        ('label,text\na,x\nb,"y\na,z\nb,q\n', "line 3: a quotation mark is opened there"),
        ('text,label\na,x\ny,"b', "line 3: a quotation mark is opened there"),
        ('text,label\n"x"",a\n"y",b\n', "line 2: text follows a closing quotation mark"),
        ('text,label\nx,a\n""y"",b\n', "line 3: text follows a closing quotation mark"),
        ('text,label\nx,a\ny, "a"\n', "line 3: a space stands before a quotation mark"),
        ("text|label\nx|a\n", r"has none of the columns .*text, label.*data.delimiter"),
        ('text;label;"a,b,c,d"\nx;y;z\n', "data.delimiter"),
    ],
)
def test_rows_that_do_not_fit_the_header(
    tmp_path: Path, config: MakeConfig, content: str, message: str
) -> None:
    file = text(tmp_path / "a.csv", content)
    with pytest.raises(DataError, match=message):
        load_text_data(config(source=file))
    with pytest.raises(DataError) as caught:
        load_node_file(file, config(source="nodes", label_names="x,y"), ("x", "y"))
    assert not any(word in str(caught.value) for word in ("exported", "header (", "2 (text"))


def test_a_mark_at_the_end_of_a_block(tmp_path: Path) -> None:
    rows = "".join(f"{i:07d},x\n" for i in range(1 << 18))
    size = (4 << 20) - len("text,label\n") - 3
    file = text(tmp_path / "a.csv", "text,label\n" + rows[: size // 10 * 10] + '"a"c,a\n' + rows)
    with pytest.raises(DataError, match="text follows a closing quotation mark"):
        read_file(file)


def test_all_labels_missing(tmp_path: Path, config: MakeConfig) -> None:
    with pytest.raises(DataError, match="row 1: the label is missing"):
        load_text_data(config(source=text(tmp_path / "a.csv", "text,label\nx,\ny,\n")))


def test_an_optional_column_that_comes_late(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[Row] = [{"instruction": "i", "output": "o"}] * 1100
    rows.append({"instruction": "i", "output": "o", "input": "IMPORTANT"})
    lm = config(source=jsonl(tmp_path / "a.jsonl", rows), task="causal-lm", partition="iid")
    assert "IMPORTANT" in load_text_data(lm).train[-1]["prompt"]


def test_weight_0_is_refused_from_a_file(tmp_path: Path, config: MakeConfig) -> None:
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0}]
    file = jsonl(tmp_path / "a.jsonl", [{"messages": said}])
    with pytest.raises(DataError, match='message 2 has "weight" 0'):
        load_text_data(config(source=file, task="causal-lm", partition="iid"))


def test_parquet_numbers_and_bytes(tmp_path: Path, config: MakeConfig) -> None:
    import decimal

    columns = {
        "a": pa.array([0.1, None], pa.float32()),
        "b": pa.array([decimal.Decimal("1E-8"), decimal.Decimal("2.50")], pa.decimal128(20, 8)),
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_file(str(tmp_path / "a.parquet"))[:] == {
        "a": ["0.1", None],
        "b": ["0.00000001", "2.50000000"],
    }
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    parquet.write_table(pa.table({"text": broken, "label": ["x", "y"]}), tmp_path / "b.parquet")
    for task in ("classification", "causal-lm"):
        with pytest.raises(DataError, match='row 2: column "text" holds bytes that are not UTF-8'):
            load_text_data(config(source=str(tmp_path / "b.parquet"), task=task, partition="iid"))


def test_a_packed_file_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"text,label\na,x\n"))
    with pytest.raises(DataError, match=r"compressed by gzip; its name must end in \.gz"):
        read_file(str(tmp_path / "a.csv"))


def test_quotation_marks_that_are_right(tmp_path: Path, config: MakeConfig) -> None:
    content = 'text,label\n6" nail,x\n"a ""b"" c, d",y\n"line\r\nbreak",x\n"",y\n'
    data = load_text_data(config(source=text(tmp_path / "a.csv", content)))
    assert data.train["text"][:] == ['6" nail', 'a "b" c, d', "line\r\nbreak"]


def test_a_row_longer_than_a_block(tmp_path: Path) -> None:
    long = "x" * (9 << 20)
    rows = read_file(text(tmp_path / "a.csv", f"text,label\na,x\n{long},y\n"))
    assert [len(value) for value in rows["text"]] == [1, len(long)]
    lines = jsonl(tmp_path / "a.jsonl", [{"text": long}, {"text": "b"}])
    assert [len(value) for value in read_columns(lines, Asked(("text",))).dataset["text"]] == [
        len(long),
        1,
    ]


# A path is a path.


def test_names_with_pattern_characters(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[Row] = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "[ward]").mkdir()
    jsonl(tmp_path / "what1.jsonl", [{"text": "other file", "label": "b"}] * 3)
    for name in (
        "train[1].jsonl",
        "[ward]/train.jsonl",
        "what?.jsonl",
        "all*.jsonl",
        "{a,b}.jsonl",
    ):
        file = jsonl(tmp_path / name, rows)
        assert labels_of(config, file) == ["a", "b"] * 3
        assert len(load_node_file(file, config(label_names="a,b"), ("a", "b"))) == 6


def test_patterns_and_folders_where_the_config_says_so(tmp_path: Path, config: MakeConfig) -> None:
    for name in ("part-2.jsonl", "part-1.jsonl", "test.jsonl", "validation.jsonl", "notes.txt"):
        jsonl(
            tmp_path / name,
            [{"text": name, "label": "xy"[len(name) % 2]}, {"text": "q", "label": "y"}],
        )
    pattern = str(tmp_path / "part-*.jsonl")
    with pytest.raises(DataError, match="no such file"):
        load_text_data(config(source=pattern))
    found = load_text_data(config(source=pattern, source_kind="glob"))
    assert found.train["text"][:] == ["part-1.jsonl", "q", "part-2.jsonl", "q"]
    with pytest.raises(DataError, match="no file matches this pattern"):
        load_text_data(config(source=str(tmp_path / "x*.csv"), source_kind="glob"))
    folder = load_text_data(config(source=str(tmp_path), source_kind="folder"))
    assert folder.train["text"][:] == found.train["text"][:]
    assert folder.test is not None and folder.test["text"][:] == ["test.jsonl", "q"]
    with pytest.raises(DataError, match=r'is a folder; .*source-kind = "folder"'):
        load_text_data(config(source=str(tmp_path)))


# Encodings and dialects.

UMLAUTS = "text,label\nGrüße,é\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "csv.gz"])
def test_encodings(tmp_path: Path, encoding: str, kind: str) -> None:
    rows = [{"text": "Grüße", "label": "é"}]
    content = (
        UMLAUTS
        if "csv" in kind
        else json.dumps(rows if kind == "json" else rows[0], ensure_ascii=False)
    )
    data = content.encode(encoding)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    dialect = Dialect("cp1252" if encoding == "cp1252" else "auto")
    assert column_names(str(path), dialect) == ["text", "label"]
    assert read_columns(str(path), Asked(("text", "label")), dialect).dataset[0] == rows[0]


@pytest.mark.parametrize(
    ("kind", "place"), [("csv", "byte 13, line 2"), ("jsonl", "byte 12, line 1")]
)
def test_another_encoding_is_named_with_the_place(tmp_path: Path, kind: str, place: str) -> None:
    content = UMLAUTS if kind == "csv" else '{"text": "Gr\u00fc\u00dfe", "label": "x"}\n'
    file = text(tmp_path / f"a.{kind}", content, "cp1252")
    with pytest.raises(DataError, match=place + r': not UTF-8; .*data\.encoding = "cp1252".*iconv'):
        read_file(file)


def test_utf_16_without_a_mark(tmp_path: Path) -> None:
    file = text(tmp_path / "a.csv", UMLAUTS, "utf-16-le")
    with pytest.raises(DataError, match=r'data\.encoding = "utf-16-le"'):
        read_file(file)
    found = read_columns(file, Asked(("text",)), Dialect("utf-16-le"))
    assert found.dataset["text"][:] == ["Grüße"]


@pytest.mark.parametrize(
    ("name", "content", "delimiter"),
    [
        ("a.csv", "text;label\na, b;x\n", "auto"),
        ("a.csv", "text\tlabel\na, b\tx\n", "auto"),
        ("a.tsv", "text\tlabel\na, b\tx\n", "auto"),
        ("a.csv", "sep=;\ntext;label\na, b;x\n", "auto"),
        ("a.csv", "text|label\na, b|x\n", "|"),
        ("a.csv", '"text" ; "label"\r\n"a, b";x\r\n'.replace(" ; ", ";"), "auto"),
        ("a.csv", '\n\ntext,label\n"a, b",x\n', "auto"),
    ],
)
def test_delimiters(
    tmp_path: Path, config: MakeConfig, name: str, content: str, delimiter: str
) -> None:
    file = text(tmp_path / name, content)
    data = load_text_data(
        config(source=file, partition="iid", delimiter=delimiter, label_names="x,y")
    )
    assert data.train["text"][:] == ["a, b"]


def test_wrong_encodings_and_delimiters_of_the_config(config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="no encoding of text.*cp1252"):
        config(encoding="klingon")
    with pytest.raises(ValueError, match="one ASCII character"):
        config(delimiter=";;")
    assert config(delimiter="tab").delimiter == "\t"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}{"text": "b"}\n', "line 1 is not valid JSON"),
        ("a.jsonl", '{\n"text": "a"\n}\n', "line 1 is not valid JSON.*stand in an array"),
        ("a.jsonl", '{"text": "\\ud83d", "label": "x"}\n', 'line 1: column "text" holds half of a'),
        ("a.json", '[{"text": "a"},]', "a comma stands after the last row"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "not closed after row 1"),
        ("a.json", '[{"text": "a"}', "not closed after row 1"),
        ("a.json", '[{"text": "a"}] {}', "something stands behind the end"),
        ("a.json", '[{"text": "a"}, {"text": b}]', "row 2 is not valid JSON"),
        ("a.json", '[{"text": "a"}, ["b"]]', "row 2 is not a JSON object"),
    ],
)
def test_broken_json(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_file(text(tmp_path / name, content))


# The same rows, whatever the format.

CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "001",
        "1",
        "1.0",
        "1e3",
        "true",
        "null",
        "NaN",
        "None",
        "2024-01-05",
        "a,b",
        'a"b',
        "a\nb",
        "a\r\nb",
        "=1+1",
        " a ",
    ]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=20))
def test_a_table_of_text_reads_the_same_from_every_format(
    tmp_path: Path, rows: list[tuple[str, str, str]]
) -> None:
    names = ("text", "label", "a b")
    table = [dict(zip(names, row, strict=True)) for row in rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([names, *rows])
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "a.csv").write_bytes(buffer.getvalue().encode())
    (folder / "b.csv").write_bytes(codecs.BOM_UTF16_LE + buffer.getvalue().encode("utf-16-le"))
    (folder / "a.tsv").write_bytes(_tsv(names, rows).encode())
    jsonl(folder / "a.jsonl", list(table))
    (folder / "a.json").write_text(
        json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    parquet.write_table(pa.Table.from_pylist(table), folder / "a.parquet")
    for file in folder.iterdir():
        for keep in (True, False):
            assert read_file(str(file), keep_copy=keep).to_list() == table, file.name


def _tsv(names: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\r\n").writerows([names, *rows])
    return buffer.getvalue()


def test_all_ways_in_read_the_same(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[Row] = [{"text": f"t {i}", "label": f"00{i % 3}"} for i in range(9)]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", rows)
    lines = "".join(f"{row['text']},{row['label']}\n" for row in rows)
    text(tmp_path / "a.csv", "text,label\n" + lines)
    names = ("000", "001", "002")
    expected = {"text": [row["text"] for row in rows], "label": [0, 1, 2] * 3}
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        file = str(tmp_path / name)
        data = load_text_data(config(source=file, test_source=file))
        assert data.train[:] == expected and data.label_names == names
        assert data.test is not None and data.test[:] == expected
        twice = load_text_data(config(source=f"{file},{tmp_path / 'a.jsonl'}"))
        assert twice.train["label"][:] == [0, 1, 2] * 6
        assert load_node_file(file, config(label_names=",".join(names)), names)[:] == expected


# What two parts of the input say differently.


def declared_parquet(path: Path, text_column: str = "text") -> str:
    features = datasets.Features(
        {text_column: datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {text_column: ["a", "b"], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def test_labels_beside_a_file_that_declares_the_classes(tmp_path: Path, config: MakeConfig) -> None:
    declared = declared_parquet(tmp_path / "a.parquet")
    same = text(tmp_path / "b.csv", "text,label\nc,yes\nd,no\n")
    assert labels_of(config, f"{declared},{same}") == ["yes", "no", "yes", "no"]
    numbers = text(tmp_path / "c.csv", "text,label\nc,1\nd,0\n")
    with pytest.raises(DataError, match=r"c\.csv: .*such as '0' beside .*no, yes.*label-names"):
        labels_of(config, f"{declared},{numbers}")
    assert labels_of(config, f"{declared}", label_names="no, yes") == ["yes", "no"]


@pytest.mark.parametrize(
    ("mark", "written", "given"),
    [
        (codecs.BOM_UTF16_LE, "utf-16-le", "utf-8"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "cp1252"),
        (codecs.BOM_UTF8, "utf-8", "utf-16"),
        (codecs.BOM_UTF8, "utf-8", "latin-1"),
        (codecs.BOM_UTF32_LE, "utf-32-le", "utf-16"),
    ],
)
def test_an_encoding_that_the_files_own_mark_contradicts(
    tmp_path: Path, config: MakeConfig, mark: bytes, written: str, given: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(mark + "text,label\na,x\nb,y\n".encode(written))
    with pytest.raises(DataError, match=rf'data.encoding = "{given}", but its byte order mark'):
        labels_of(config, str(file), encoding=given)
    assert labels_of(config, str(file)) == ["x", "y"]


@pytest.mark.parametrize("given", ["utf-8", "utf-8-sig"])
def test_an_encoding_that_agrees_with_the_mark(
    tmp_path: Path, config: MakeConfig, given: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(codecs.BOM_UTF8 + b"text,label\na,x\nb,y\n")
    assert labels_of(config, str(file), encoding=given) == ["x", "y"]


def test_spaces_around_the_names_of_columns(tmp_path: Path, config: MakeConfig) -> None:
    assert labels_of(config, declared_parquet(tmp_path / "a.parquet", " text ")) == ["yes", "no"]
    padded = text(tmp_path / "a.csv", " text , label\na,yes\nb,no\n")
    assert labels_of(config, padded) == ["yes", "no"]


def test_a_header_of_more_than_a_megabyte(tmp_path: Path, config: MakeConfig) -> None:
    others = [f"column_{index}_{'x' * 90}" for index in range(12_000)]
    row = ",".join("1" for _ in others)
    file = text(tmp_path / "a.csv", f"{','.join(others)},text,label\n{row},a,x\n{row},b,y\n")
    assert labels_of(config, file) == ["x", "y"]


def test_a_comma_in_the_brackets_of_a_pattern(tmp_path: Path, config: MakeConfig) -> None:
    for name in ("a", "b", "c"):
        text(tmp_path / f"{name}.csv", f"text,label\n{name},x\n{name},y\n")
    pattern = f"{tmp_path}/[a,b].csv"
    assert len(labels_of(config, pattern, source_kind="glob")) == 4
    assert len(labels_of(config, f"{pattern}, {tmp_path}/c*.csv", source_kind="glob")) == 6


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [(["a", "b"], "a list"), ([{"a": "b"}], "a list"), ({"a": "b"}, "an object")],
)
def test_a_prompt_that_is_neither_text_nor_messages(
    tmp_path: Path, config: MakeConfig, prompt: object, kind: str
) -> None:
    lm = config(task="causal-lm", partition="iid")
    for name, rows in (
        ("a.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": prompt, "completion": "c"}]),
        ("b.jsonl", [{"prompt": prompt, "completion": "c"}] * 2),
    ):
        file = jsonl(tmp_path / name, rows)
        with pytest.raises(DataError, match=rf'{name}: .*"prompt" holds {kind}, neither'):
            load_text_data(lm.model_copy(update={"source": file}))


def test_a_prompt_of_messages_may_be_a_list_an_object_of_lists_or_text(
    tmp_path: Path, config: MakeConfig
) -> None:
    turn = {"role": "user", "content": "Hi"}
    forms = [[turn], {"role": ["user"], "content": ["Hi"]}, json.dumps([turn])]
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": form, "completion": "Yes"} for form in forms])
    data = load_text_data(config(source=file, task="causal-lm", partition="iid"))
    assert data.train["messages"][:] == [[turn, {"role": "assistant", "content": "Yes"}]] * 3
    empty = jsonl(tmp_path / "e.jsonl", [{"prompt": p, "completion": "c"} for p in ([], "p")])
    found = load_text_data(config(source=empty, task="causal-lm", partition="iid"))
    assert found.train[:] == {"prompt": ["p"], "completion": ["c"]}
