from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from fedmoe_app import DataError
from fedmoe_app.data.corpus import Corpus
from fedmoe_app.data.sources import cap, load_node_file, load_text_data

from .conftest import REPOSITORY, MakeConfig

SHARED = REPOSITORY.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data sets are absent")


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train_file(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", [{"text": t, "label": t.upper()} for t in "abcab"])


def test_embedded(corpus: Corpus, config: MakeConfig) -> None:
    data = load_text_data(config(max_test_examples=80))
    assert data.label_names == corpus.label_names
    assert data.train[:5] == corpus.train[:5]
    assert data.test is not None
    assert set(Counter(data.test["label"]).values()) == {10}


def test_a_local_file_with_its_test_file(
    tmp_path: Path, train_file: str, config: MakeConfig
) -> None:
    test_file = write(tmp_path / "test.jsonl", [{"text": "t", "label": "B", "more": 1}])
    data = load_text_data(config(source=train_file, test_source=test_file))
    assert data.label_names == ("A", "B", "C")
    assert data.train[:] == {"text": list("abcab"), "label": [0, 1, 2, 0, 1]}
    assert data.test is not None
    assert data.test[:] == {"text": ["t"], "label": [1]}


def test_a_node_needs_no_test_file(train_file: str, config: MakeConfig) -> None:
    with_missing = config(source=train_file, test_source="/absent/test.csv")
    data = load_text_data(with_missing, with_test=False)
    assert data.test is None
    assert data.fingerprint == load_text_data(config(source=train_file)).fingerprint
    with pytest.raises(DataError, match="/absent/test.csv"):
        load_text_data(with_missing)


def test_the_fingerprint_follows_the_contents(tmp_path: Path, config: MakeConfig) -> None:
    rows: list[dict[str, object]] = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    path = tmp_path / "a.jsonl"
    prints = []
    for text in ("a", "c", "a"):
        rows[0]["text"] = text
        prints.append(load_text_data(config(source=write(path, rows))).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_a_test_label_must_be_known(tmp_path: Path, train_file: str, config: MakeConfig) -> None:
    test_file = write(tmp_path / "test.jsonl", [{"text": "t", "label": "Q"}])
    with pytest.raises(DataError, match=r"test\.jsonl, row 1: label 'Q'.*A, B, C"):
        load_text_data(config(source=train_file, test_source=test_file))


def test_several_files(tmp_path: Path, train_file: str, config: MakeConfig) -> None:
    second = write(tmp_path / "more.jsonl", [{"label": "D", "text": "d"}])
    data = load_text_data(config(source=f"{train_file}, {second}"))
    assert data.label_names == ("A", "B", "C", "D")
    assert data.train["label"][:] == [0, 1, 2, 0, 1, 3]


def test_a_local_folder_with_splits(tmp_path: Path, config: MakeConfig) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", [{"text": split, "label": "x"}])
    with pytest.raises(DataError, match=r'is a folder; set data\.source-kind = "folder"'):
        load_text_data(config(source=str(folder)))
    data = load_text_data(config(source=str(folder), source_kind="folder"))
    assert data.test is not None
    assert (data.train["text"][:], data.test["text"][:]) == (["train"], ["test"])


@pytest.mark.parametrize("source", ["owner/not-there", "embeded"])
def test_an_unknown_source_lists_the_choices(source: str, config: MakeConfig) -> None:
    with pytest.raises(DataError, match=f'data.source = "{source}": not "embedded", not a file'):
        load_text_data(config(source=source))


def test_a_node_file(tmp_path: Path, config: MakeConfig) -> None:
    path = write(tmp_path / "own.jsonl", [{"text": "a", "label": "C"}, {"text": "b", "label": "Z"}])
    assert load_node_file(path, config(), ("Z", "C"))["label"][:] == [1, 0]
    with pytest.raises(DataError, match=r"own\.jsonl, row 2: its label is not one of .* B, C"):
        load_node_file(Path(path), config(), ("B", "C"))


def test_the_embedded_corpus_is_plain_text(corpus: Corpus, config: MakeConfig) -> None:
    data = load_text_data(config(task="causal-lm", partition="iid"))
    assert data.train.column_names == ["text"]
    with pytest.raises(DataError, match='"instruction": embedded has no such column.*text, label'):
        load_text_data(config(task="causal-lm", partition="iid", instruction_field="instruction"))


def test_cap_keeps_the_shares_of_the_classes() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    dataset = Dataset.from_dict({"text": [str(i) for i in range(100)], "label": labels})
    capped = cap(dataset, 20)
    assert Counter(capped["label"]) == {0: 12, 1: 6, 2: 2}
    rows = [int(text) for text in capped["text"]]
    assert rows == sorted(rows) and rows != list(range(20))
    assert cap(dataset, 20)[:] == capped[:]
    assert cap(dataset, 0) is dataset and cap(dataset, 100) is dataset


def test_cap_without_labels() -> None:
    dataset = Dataset.from_dict({"prompt": [str(i) for i in range(50)]})
    assert len(set(cap(dataset, 7)["prompt"])) == 7


@needs_shared
def test_shared_classification(config: MakeConfig) -> None:
    folder = SHARED / "clinc150"
    data = load_text_data(
        config(
            source=str(folder / "train.jsonl.gz"),
            test_source=str(folder / "test.jsonl.gz"),
            partition="natural",
            partition_by="domain",
        )
    )
    assert (len(data.train), len(data.label_names)) == (15000, 150)
    labels = json.loads((folder / "labels.json").read_text())
    assert list(data.label_names) == labels["label_names"]
    assert len(set(data.train["domain"])) == 10


@needs_shared
def test_shared_causal_lm(config: MakeConfig) -> None:
    data = load_text_data(
        config(
            source=str(SHARED / "dolly15k" / "test.jsonl.gz"),
            task="causal-lm",
            context_field="context",
            partition_by="domain",
        )
    )
    assert data.train.column_names == ["prompt", "response", "domain"]
    assert data.label_names == () and data.test is None
    assert all(data.train["response"])
