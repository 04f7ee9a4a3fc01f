"""Several names in one value: files and classes, with and without commas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app import ConfigError, DataError, flatten_run_config, parse_run_config
from fedmoe_app.config.lists import (
    as_list,
    base_names,
    check_classes,
    file_names,
    join_files,
    label_names,
    looked_for,
    name_list,
    read_label_names,
    torn_name,
)
from tests.conftest import flat_config, make_config

KEY = "data.label-names"
LISTED = '["Health, safety", "Other"]'
BOTH = ("Health, safety", "Other")

names = st.text(min_size=1).filter(str.strip)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("yes, no,,maybe ", ("yes", "no", "maybe")),
        (LISTED, BOTH),
        (f"  {LISTED}\n", BOTH),
        ("[UNK], [PAD]", ("[UNK]", "[PAD]")),
        ('[UNK], "x"', ("[UNK]", '"x"')),
        ('["[a]", " b "]', ("[a]", " b ")),
    ],
)
def test_names_stand_between_commas_or_in_a_list(text: str, expected: tuple[str, ...]) -> None:
    assert name_list(text, KEY) == expected


@given(st.lists(names))
def test_every_list_of_names_survives_as_text(wanted: list[str]) -> None:
    assert name_list(as_list(wanted), KEY) == tuple(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("['Health, safety', 'Other']", f"a list is written as JSON: {LISTED}"),
        ('["Health, safety", "Other",]', f"a list is written as JSON: {LISTED}"),
        ("[a, b]", 'a list is written as JSON: ["a", "b"]'),
        ('["a", 1]', 'entry 2 is not text; put it in quotation marks: "1"'),
        ('["a", " "]', "entry 2 is empty"),
    ],
)
def test_a_list_that_is_none_is_shown_as_it_should_be(text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        name_list(text, KEY)


# -- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x, y, x", 'the name "x" stands there twice, as entry 1 and entry 3'),
        ('["a, b", "a, b"]', 'the name "a, b" stands there twice'),
        ("x", 'only the class "x"; name at least two'),
        ('["x, y"]', 'only the class "x, y"; name at least two'),
        ("[]", "no class; name at least two"),
        (" , ", "no class; name at least two"),
    ],
)
def test_names_that_make_no_classes_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        label_names(text)


@pytest.mark.parametrize(
    "raw",
    [
        "Health, safety\nOther\n",
        "Health, safety\r\nOther\r\n\r\n",
        f"{LISTED}\n",
        '[\n  "Health, safety",\n  "Other"\n]\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_holds_one_name_a_line_or_a_list(tmp_path: Path, raw: str, encoding: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(raw.encode(encoding))
    assert read_label_names(path) == BOTH
    assert make_config(**{"data.label-names-file": str(path)}).data.labels == BOTH


def test_lines_in_brackets_are_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("[UNK]\n[PAD]\n")
    assert read_label_names(tmp_path / "labels.txt") == ("[UNK]", "[PAD]")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no class"),
        (b"one\n", 'only the class "one"'),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", 'the name "a" stands there twice, as line 1 and line 3'),
        (b'["a", "a"]', "as entry 1 and entry 2"),
        (b"['a', 'b']", 'a list is written as JSON: ["a", "b"]'),
        ("a\nGem\u00fcse\n".encode("cp1252"), "byte 0xfc at offset 5 (line 2) is not UTF-8"),
    ],
)
def test_a_file_that_names_no_classes_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_label_names(path)
    assert "label-names-file" in str(error.value)


def test_a_file_that_is_not_there_is_named_with_the_machine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.txt.*No such file.*the server's machine"):
        read_label_names(tmp_path / "nowhere.txt")


def test_names_and_a_file_of_names_are_one_too_many() -> None:
    both = {KEY: "a, b", "data.label-names-file": "/labels.txt"}
    with pytest.raises(ConfigError, match="label-names-file.*set only one"):
        make_config(**both)


def test_the_config_is_read_where_the_file_is_not() -> None:
    config = make_config(**{"data.label-names-file": "/no/such/file"})
    assert config.data.with_labels(BOTH).labels == BOTH


def test_one_class_is_none_to_choose_from() -> None:
    check_classes(("a", "b"), "rows.csv")
    with pytest.raises(DataError, match=r'"rows.csv": every row has the class "a"'):
        check_classes(("a",), "rows.csv")


def test_a_name_torn_at_its_comma_is_explained() -> None:
    assert LISTED in torn_name("Health, safety", ("Health", "safety", "Other"))
    assert torn_name("Health, safety", ("Health", "Other")) == ""
    assert torn_name("Other", ("Health", "Other")) == ""


# -- files -------------------------------------------------------------------------------------


def test_a_path_that_exists_is_one_file_whatever_is_in_it(tmp_path: Path) -> None:
    for name in ("[1].csv", '["a"]', "my data, v2.csv", "a.csv"):
        (tmp_path / name).touch()
        assert file_names(name, tmp_path) == (name,)
        assert file_names(str(tmp_path / name)) == (str(tmp_path / name),)
    assert file_names("a.csv, my data, v2.csv", tmp_path) == ("a.csv", "my data", "v2.csv")
    assert file_names('["a.csv", "my data, v2.csv"]', tmp_path) == ("a.csv", "my data, v2.csv")


def test_what_does_not_exist_is_split(tmp_path: Path) -> None:
    assert file_names("[1].csv", tmp_path) == ("[1].csv",)
    assert file_names("", tmp_path) == ()
    assert file_names("a.csv, b.csv,", tmp_path) == ("a.csv", "b.csv")
    long = ", ".join(f"{'x' * 200}{index}.csv" for index in range(9))
    assert len(file_names(long, tmp_path)) == 9  # too long for a path, which is no error
    assert file_names("~nobody/a.csv,b\0.csv", tmp_path) == ("~nobody/a.csv", "b\0.csv")


@given(st.lists(names.filter(lambda name: "[" not in name and name == name.strip()), min_size=2))
def test_joined_files_are_told_apart_again(paths: list[str]) -> None:
    for as_json in (True, False):
        assert name_list(join_files(paths, as_json), "data.source") == tuple(paths)


def test_a_path_with_commas_that_is_not_there_was_looked_for_in_two_ways() -> None:
    assert '"a, b.csv" was looked for as one path and as 2 paths' in looked_for("a, b.csv")
    assert looked_for("a.csv") == looked_for('["a, b.csv"]') == ""


def test_titles_show_the_last_part_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b, v2.csv").touch()
    assert base_names(str(tmp_path / "b, v2.csv")) == "b, v2.csv"
    assert base_names('["/x/a.csv", "/y/b, v2.csv"]') == "a.csv, b, v2.csv"
    assert base_names("['no list']") == "['no list']"


# -- Flower ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [BOTH, ("Men's", "a \\ b"), ('say "hi"', "#1", "x=y")])
def test_flowers_own_parser_takes_a_list_as_text(wanted: tuple[str, ...]) -> None:
    text = as_list(wanted).replace("'", "\\u0027")  # Flower knows no escapes in '...'
    read = parse_config_args([f"seed=7 data.label-names='{text}'"])
    assert read == {"seed": 7, KEY: text}
    assert parse_run_config(flat_config() | read).data.labels == wanted


def test_a_list_goes_through_flowers_run_config(tmp_path: Path) -> None:
    flat = flatten_run_config(make_config(**{KEY: LISTED}))
    assert json.loads(str(flat[KEY])) == list(BOTH)
    assert parse_run_config(flat).data.labels == BOTH
