"""The embedded corpus: which library is this docstring from? Real text, no download.

Eight classes, one a library (see ``LIBRARIES``), of texts cut out of the docstrings of the
installed packages, their names masked. Split by docstring, so that two texts of one docstring are
never in different parts: ``TEST_PER_CLASS`` texts a class for testing, ``TRAIN_PER_CLASS`` for
training, and up to ``WARMUP_PER_CLASS`` held out for a language-model warm-up. A text is left out
when more than half of its word 5-grams occur in texts kept before (shingling: Broder, "On the
resemblance and containment of documents", 1997), over all parts and classes.

The same library versions give the same corpus. It is cached under ``cache_dir()/corpus-<key>``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets.table import InMemoryTable
from pyarrow import json as arrow_json

from fedmoe_app.config.files import build_once, write_atomic
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.data.docstrings import (
    docstrings,
    library_folder,
    library_version,
    source_files,
    texts_of,
)

RECIPE_VERSION = 1  # raise it whenever a change here or in docstrings.py changes the texts
# Class name -> packages read for it. Flower's own docstrings alone are too few.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "python": ("python",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "sympy": ("sympy",),
    "networkx": ("networkx",),
    "flwr": ("flwr", "flwr_datasets"),
}
TEST_PER_CLASS = 300
TRAIN_PER_CLASS = 1200
WARMUP_PER_CLASS = 750
PARTS = ("test", "train", "warmup")

_PART_SIZES = dict(zip(PARTS, (TEST_PER_CLASS, TRAIN_PER_CLASS, WARMUP_PER_CLASS), strict=True))
_SHINGLE_WORDS = 5
_FEATURES = Features({"text": Value("string"), "label": Value("int64")})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """The embedded corpus; each part has the columns ``text`` (str) and ``label`` (int)."""

    train: Dataset
    test: Dataset
    warmup: Dataset
    label_names: tuple[str, ...]
    fingerprint: str  # hash of the texts themselves: equal on nodes that hold the same corpus


def load_corpus() -> Corpus:
    """Return the embedded corpus, building it at the first call (seconds).

    Raises:
        CorpusError: when one of the libraries is not installed.
    """
    folder = build_once(cache_dir() / f"corpus-{recipe_key()}", _build)
    parts = {part: _read_part(folder / f"{part}.jsonl") for part in PARTS}
    fingerprint = (folder / "fingerprint").read_text(encoding="utf-8")
    return Corpus(**parts, label_names=tuple(LIBRARIES), fingerprint=fingerprint)


def recipe_key() -> str:
    """Return a hash of what the corpus is made by: the recipe and the libraries' versions."""
    packages = [package for group in LIBRARIES.values() for package in group]
    versions = [f"{package}={library_version(package)}" for package in packages]
    return _digest([str(RECIPE_VERSION), *versions])


def _build(folder: Path) -> None:
    rows: dict[str, list[tuple[str, int]]] = {part: [] for part in PARTS}
    known: set[int] = set()
    for label, (name, packages) in enumerate(LIBRARIES.items()):
        _log.info("embedded corpus: reading %s (%d of %d)", name, label + 1, len(LIBRARIES))
        for part, texts in split(collect(_all_docstrings(packages), known)).items():
            rows[part] += [(text, label) for text in texts]
    for part, pairs in rows.items():
        # By hash: mixes the classes, the same on every machine.
        pairs.sort(key=lambda pair: _digest([pair[0]]))
        _write_part(folder / f"{part}.jsonl", pairs)
    everything = [f"{part} {label} {text}" for part in PARTS for text, label in rows[part]]
    (folder / "fingerprint").write_text(_digest(everything), encoding="utf-8")


def _all_docstrings(packages: Iterable[str]) -> Iterator[str]:
    for package in packages:
        for path in source_files(library_folder(package)):
            yield from docstrings(path)


def collect(documents: Iterable[str], known: set[int]) -> list[list[str]]:
    """Cut docstrings into texts until there are enough for all parts of a class.

    Args:
        documents: raw docstrings, read lazily.
        known: hashes of the word 5-grams of the texts kept so far; extended in place.

    Returns:
        The new texts of each docstring that has any, near-duplicates left out.
    """
    groups = []
    missing = sum(_PART_SIZES.values())
    for document in documents:
        group = [text for text in texts_of(document) if _is_new(text, known)]
        if group:
            groups.append(group)
            missing -= len(group)
        if missing <= 0:
            break
    return groups


def _is_new(text: str, known: set[int]) -> bool:
    """Tell whether at most half of the text's shingles are known; if so, add them."""
    shingles = _shingles(text)
    if 2 * len(shingles & known) > len(shingles):
        return False
    known |= shingles
    return True


def _shingles(text: str) -> set[int]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    # Built-in hash() of strings differs between processes; these only live within one build,
    # where equal shingles have equal hashes.
    return {hash(tuple(words[start : start + _SHINGLE_WORDS])) for start in range(count)}


def split(groups: Sequence[list[str]]) -> dict[str, list[str]]:
    """Deal whole docstrings out to test, train and warm-up, in the order of their hashes.

    A part is filled to its size before the next one begins; what a part's last docstring has
    too many is dropped, so that no docstring is in two parts.
    """
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    queue = sorted(groups, key=_digest)
    for part, size in _PART_SIZES.items():
        while queue and len(parts[part]) < size:
            parts[part] += queue.pop(0)
        del parts[part][size:]
    return parts


def _write_part(path: Path, pairs: Iterable[tuple[str, int]]) -> None:
    rows = ({"text": text, "label": label} for text, label in pairs)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_part(path: Path) -> Dataset:
    rows = arrow_json.read_json(path)
    return Dataset(InMemoryTable(rows.select(_FEATURES).cast(_FEATURES.arrow_schema)))


def _digest(strings: Iterable[str]) -> str:
    """Return 16 hex digits of SHA-256 over strings, unambiguous in where each one ends."""
    state = hashlib.sha256()
    for string in strings:
        state.update(string.encode("utf-8", "surrogatepass") + b"\0")
    return state.hexdigest()[:16]
