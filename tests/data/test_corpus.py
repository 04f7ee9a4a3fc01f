from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from fedmoe_app.data import corpus as module
from fedmoe_app.data.corpus import (
    LIBRARIES,
    PARTS,
    TEST_PER_CLASS,
    TRAIN_PER_CLASS,
    WARMUP_PER_CLASS,
    Corpus,
    collect,
    load_corpus,
    split,
)
from fedmoe_app.data.docstrings import MAX_CHARS, MIN_CHARS, CorpusError
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the corpus has been built by the code as it is now."""
    home = tmp_path_factory.mktemp("corpus-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(home))
        load_corpus()
    return home


@pytest.fixture
def with_corpus(built: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMOE_HOME", str(built))
    return built


def test_classes_are_even_and_as_large_as_said(corpus: Corpus) -> None:
    assert corpus.label_names == tuple(LIBRARIES)
    for part, size in ((corpus.train, TRAIN_PER_CLASS), (corpus.test, TEST_PER_CLASS)):
        counts = Counter(part["label"])
        assert sorted(counts) == list(range(len(LIBRARIES)))
        # A library release may have fewer docstrings; far fewer would be a fault.
        assert all(0.9 * size <= count <= size for count in counts.values())
    assert 2000 <= len(corpus.warmup) <= WARMUP_PER_CLASS * len(LIBRARIES)


def test_every_library_that_the_corpus_reads_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    # torch and datasets require numpy; python comes with itself.
    read = {name.replace("_", "-") for group in LIBRARIES.values() for name in group}
    assert read - {"python", "numpy"} <= declared


def test_no_text_is_in_two_parts(corpus: Corpus) -> None:
    def keys(part: str) -> list[str]:
        return [re.sub(r"[^a-z0-9]", "", text.lower()) for text in getattr(corpus, part)["text"]]

    everything = [key for part in PARTS for key in keys(part)]
    assert len(set(everything)) == len(everything)


def test_texts_are_prose_without_library_names(corpus: Corpus) -> None:
    for text in corpus.test["text"]:
        assert MIN_CHARS <= len(text) <= MAX_CHARS
        assert not re.search(r"(?i)numpy|pandas|torch|sympy|networkx|flwr|\bnp\.", text)


def test_a_second_load_reads_the_same_from_the_cache(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_build", lambda folder: pytest.fail("built again"))
    again = load_corpus()
    assert again.fingerprint == corpus.fingerprint
    assert again.train[:3] == corpus.train[:3]


def test_two_builds_are_equal(
    with_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIBRARIES", {"flwr": ("flwr_datasets",), "nx": ("networkx",)})
    for part in PARTS:
        monkeypatch.setitem(module._PART_SIZES, part, 20)
    contents = []
    for name in ("one", "two"):
        monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / name))
        load_corpus()
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert [name for name, _ in contents[0]] == [
        "fingerprint",
        "test.jsonl",
        "train.jsonl",
        "warmup.jsonl",
    ]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARIES", {"nosuchlib": ("nosuchlib",)})
    with pytest.raises(CorpusError, match="nosuchlib"):
        load_corpus()


def test_collect_leaves_near_duplicates_out() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    other = "a wholly different text about graphs and their many nodes and edges and weights"
    # One word changed at the end: 9 of 10 word 5-grams are the same.
    nearly = words.replace("fourteen", "fifteen")
    groups = collect([words, nearly, other, words.upper()], known=set())
    assert groups == [[words], [other]]


def test_split_keeps_the_texts_of_a_docstring_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in PARTS:
        monkeypatch.setitem(module._PART_SIZES, part, 3)
    groups = [[f"{name}{i}" for i in range(2)] for name in "abcdefgh"]
    parts = split(groups)
    assert [len(texts) for texts in parts.values()] == [3, 3, 3]
    origins = [{text[0] for text in texts} for texts in parts.values()]
    assert not origins[0] & origins[1] and not (origins[0] | origins[1]) & origins[2]
    assert parts == split(groups[::-1])
