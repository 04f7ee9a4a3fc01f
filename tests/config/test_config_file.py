"""TOML files of run config: encodings, lists, and what stands in a line that is not TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.compare.plan import read_schemes
from fedmoe_app.config.overrides import app_defaults, read_overrides

TEXT = 'scheme = "fedmoe"\n[data]\ntext-field = "größe"\n'
FLAT = {"scheme": "fedmoe", "data.text-field": "größe"}


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_overrides([str(path)])
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["run.toml", "run.TOML"])
def test_a_file_is_read_in_the_encoding_that_its_mark_says(
    tmp_path: Path, encoding: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(TEXT.encode(encoding))
    assert read_overrides([str(path)]) == FLAT
    if name == "run.toml":
        assert read_schemes(str(path))[0].overrides == FLAT


@pytest.mark.parametrize(
    ("raw", "place", "encoding"),
    [
        (TEXT.encode("cp1252"), "byte 0xf6 at offset 41 (line 3) is not UTF-8", "WINDOWS-1252"),
        (TEXT.encode("utf-16-le"), "a NUL byte at offset 1", "UTF-16LE"),
        (TEXT.encode("utf-16-be"), "a NUL byte at offset 0", "UTF-16BE"),
    ],
)
def test_another_encoding_is_named_with_a_command_that_converts(
    tmp_path: Path, raw: bytes, place: str, encoding: str
) -> None:
    path = tmp_path / "my run.toml"
    path.write_bytes(raw)
    message = refused(path)
    assert place in message
    command = f"iconv -f {encoding} -t UTF-8 '{path}' > '{tmp_path / 'my run-utf8.toml'}'"
    assert command in message
    assert raw.decode({"WINDOWS-1252": "cp1252"}.get(encoding, encoding)) == TEXT


def test_a_torn_file_with_a_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(TEXT.encode("utf-16")[:-1])
    assert "-LE, as its first bytes say" in refused(tmp_path / "run.toml")


def test_lists_become_text(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[data]\nsource = ["a.csv", "b, v2.csv"]\nlabel-names = ["Health, safety", "Other"]\n'
    )
    assert read_overrides([str(tmp_path / "run.toml")]) == {
        "data.source": '["a.csv", "b, v2.csv"]',
        "data.label-names": '["Health, safety", "Other"]',
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alpha = [0.1, 0.5]", "data.alpha = [0.1, 0.5]: give a number"),
        ("label-names = [1, 2]", "data.label-names = [1, 2]: a list of texts is needed"),
        (r'source = "D:\temp\new.csv"', "data.source holds a tab, line break"),
        (r'source = ["D:\temp\new.csv"]', "data.source holds a tab, line break"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_by_its_key(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "run.toml").write_text(f"[data]\n{line}\n")
    assert message in refused(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("alpha = 1/2  # half", {"alpha": 0.5}),
        (r'source = "C:\Users\anna\train.jsonl"', {"source": r"C:\Users\anna\train.jsonl"}),
        ("text-field = größe", {"text-field": "größe"}),
        ("alpha = 0,5", {"alpha": 0.5}),
        ("label-names = [“a, b”, “c”]", {"label-names": ["a, b", "c"]}),
        ("max-length = 007", {"max-length": 7}),
    ],
)
def test_the_line_that_is_not_toml_is_shown_as_it_should_be(
    tmp_path: Path, line: str, wanted: dict[str, Any]
) -> None:
    (tmp_path / "run.toml").write_text(f"seed = 1\n\n[data]\n{line}\n", encoding="utf-8")
    message = refused(tmp_path / "run.toml")
    assert f"at line 4, column {re.search('column ([0-9]+)', message)[1]}): " in message
    assert tomllib.loads(message.rpartition("; write ")[2]) == wanted


def test_a_line_that_means_nothing_is_only_shown(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("a = = 1\n")
    assert refused(tmp_path / "run.toml").endswith(": a = = 1")


@pytest.mark.parametrize("name", ["run.json", "run.yaml", "settings"])
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "run config files are TOML and end in .toml" in refused(tmp_path / name)


def test_a_list_in_the_apps_own_defaults_is_refused_since_flower_does(tmp_path: Path) -> None:
    table = '[tool.flwr.app.config.data]\nlabel-names = ["a, b", "c"]\n'
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(ConfigError, match=r"""Flower takes no list.*'\["a, b", "c"\]'"""):
        app_defaults(tmp_path)


def test_a_mark_in_the_apps_own_defaults_is_refused_since_flower_does(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("seed = 1\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match="not TOML in UTF-8 without a mark"):
        app_defaults(tmp_path)
