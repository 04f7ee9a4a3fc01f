from __future__ import annotations

import gzip
import os
import stat
import tempfile
from pathlib import Path

import datasets
import pytest

from fedmoe_app import DataError
from fedmoe_app.data.files import looks_like_file, read_file
from fedmoe_app.data.reading import stored

JSONL = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
ROWS = {"text": ["a", "b"], "label": ["x", "y"]}


def write(path: Path, text: str) -> str:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", JSONL),
        ("a.json", JSONL),
        ("a.json.gz", f"[{JSONL.strip().replace(chr(10), ',')}]"),
        ("a.json", f"[{JSONL.strip().replace(chr(10), ', ')}]"),
        ("a.csv", "text,label\na,x\nb,y\n"),
        ("a.csv.gz", "text,label\na,x\nb,y\n"),
        ("A.CSV", "text,label\na,x\nb,y\n"),
    ],
)
def test_text_formats(tmp_path: Path, name: str, text: str) -> None:
    assert read_file(write(tmp_path / name, text))[:] == ROWS


@pytest.mark.parametrize("compressed", [False, True])
def test_parquet(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(ROWS).to_parquet(path)
    if compressed:
        (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "a.parquet.gz"
    assert read_file(str(path))[:] == ROWS


def test_csv_keeps_words_that_pandas_takes_for_missing(tmp_path: Path) -> None:
    rows = read_file(write(tmp_path / "a.csv", "text,label\nNA,None\nnull,x\n"))[:]
    assert rows == {"text": ["NA", "null"], "label": ["None", "x"]}


def test_a_changed_file_is_read_anew_even_with_the_same_time(
    tmp_path: Path, own_home: Path
) -> None:
    path = tmp_path / "a.csv"
    for text in ("a", "b"):
        write(path, f"text,label\n{text},x\n")
        os.utime(path, (1000, 1000))
        assert read_file(str(path))["text"][:] == [text]
    assert (own_home / "cache" / "text").is_dir()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_file(write(tmp_path / "a.jsonl", JSONL))
    with pytest.raises(DataError):
        read_file(write(tmp_path / "b.jsonl", JSONL + "{"))
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", r"unknown ending.*\.jsonl, \.json, \.csv, \.parquet, each also with \.gz"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl.gz", "", "the file is empty"),
        ("a.jsonl", "\n \n", "the file is empty"),
        ("a.json", "[]", "holds no rows|cannot be read as json"),
        ("a.csv", "text,label\n", "the file holds no rows"),
        ("a.jsonl", JSONL + '{"text": "c", "la', r"line 3 is not valid JSON \(Untermin.* at\)$"),
        ("a.jsonl", JSONL + '"just text"\n', "line 3 is not a JSON object"),
        ("a.jsonl.gz", '{"text": }\n' + JSONL, "line 1 is not valid JSON"),
        (
            "a.csv",
            "text,label\na,x\nb,y,z\n",
            r"line 3 has 3 fields, the header has 2 \(tex",
        ),
        ("a.parquet", "not parquet", "cannot be read as parquet"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_file(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(caught.value)


def test_a_gz_that_is_not_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_text("text,label\na,x\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_file(str(path))


def test_a_missing_file_tells_where_it_was_looked_for() -> None:
    with pytest.raises(DataError, match=r"data/a\.csv: .*no such file \(looked for /.*absolute"):
        read_file("data/a.csv")


def test_what_looks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    assert looks_like_file("a.csv") and looks_like_file("a.jsonl.gz") and looks_like_file("/no")
    assert looks_like_file(str(tmp_path / "note.txt"))
    assert not looks_like_file("owner/name") and not looks_like_file(str(tmp_path))


def test_without_a_copy_nothing_is_left_on_the_disk(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(stored, "IN_MEMORY", 10)  # larger tables go to a file without a name
    rows = read_file(write(tmp_path / "a.jsonl", JSONL), keep_copy=False)
    with pytest.raises(DataError, match="line 3 is not valid JSON"):
        read_file(write(tmp_path / "b.jsonl", JSONL + "{"), keep_copy=False)
    assert (rows[:], rows.cache_files) == (ROWS, [])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not own_home.exists()


def test_the_cache_is_private(tmp_path: Path, own_home: Path) -> None:
    read_file(write(tmp_path / "a.jsonl", JSONL))
    copies = list((own_home / "cache" / "text").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in copies if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in copies if path.is_dir()} == {0o700}
