"""Read prose out of the docstrings of installed libraries, without importing them.

Files are parsed with :mod:`ast` and never executed. Only the bodies of modules, classes and
functions are looked at, since a walk over all expressions would cost several times the parse.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fedmoe_app.config.errors import DataError

MIN_CHARS = 60
MAX_CHARS = 240
MASK = "lib"
STANDARD_LIBRARY = "python"

# Tests repeat themselves, the others are not the library's own text.
_SKIPPED = re.compile(r"_*tests?|_*testing|test_.*|.*_tests?|site-packages|dist-packages|_vendor")
# Names that would give the answer away. The first group is masked inside longer words, too
# (PyTorchModelHubMixin), the second only between non-letters (np.array, python3).
_NAMES = re.compile(
    r"cpython|pytorch|torch|numpy|pandas|sympy|networkx|flwr|huggingface|hugging face"
    r"|(?<![a-z])(?:python|py|np|pd|transformers|hf|nx|flower)(?![a-z])",
    re.IGNORECASE,
)
_RULES = re.compile(r"^\s*[-=~`^*#+|]{3,}\s*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*(\[])")
_MIN_LETTER_SHARE = 0.65


class CorpusError(DataError):
    """The embedded corpus cannot be built; the message names the library and the way out."""


def library_folder(library: str) -> Path:
    """Return the folder of an installed library's sources; ``python`` is the standard library.

    Raises:
        CorpusError: when the library is not installed.
    """
    if library == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    # For a top-level name this finds the package without importing it.
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f'the embedded corpus needs the library "{library}", which is not installed here: '
            f"install it (pip install {library}), or set data.source to a file of your own"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache  # asked for by every client in every round, and it reads files
def library_version(library: str) -> str:
    """Return the version of a library that this process has.

    Raises:
        CorpusError: when the library is not installed.
    """
    if library == STANDARD_LIBRARY:
        return platform.python_version()
    library_folder(library)
    return importlib.metadata.version(library)


def source_files(folder: Path) -> list[Path]:
    """Return a folder's Python files, tests left out, in a fixed pseudo-random order.

    The order is by a hash of the relative path, so that a reader that stops early has seen files
    from all over the library, and the same ones on every machine.
    """
    keyed = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        if not any(_SKIPPED.fullmatch(part) for part in (*relative.parts[:-1], path.stem)):
            keyed.append((hashlib.sha256(relative.as_posix().encode()).digest(), path))
    return [path for _, path in sorted(keyed)]


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions, in file order.

    A file that is not valid Python (a template, say) yields nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in old sources
            module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    yield from _docstrings_of(module)


def _docstrings_of(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if text := ast.get_docstring(node):
        yield text
    for child in node.body:
        yield from _docstrings_of(child)


def texts_of(docstring: str) -> list[str]:
    """Cut a docstring into texts of ``MIN_CHARS`` to ``MAX_CHARS`` characters.

    Examples in code are left out, white space is collapsed, library names are masked, and cuts
    are made between sentences or paragraphs only. What is too short, too long to be cut so, or
    mostly not letters (tables, formulas) is dropped, and so is what holds control characters.
    """
    texts: list[str] = []
    current = ""
    for sentence in _sentences(docstring):
        joined = f"{current} {sentence}".strip()
        if len(joined) <= MAX_CHARS:
            current = joined
        else:
            texts.append(current)
            current = sentence
    return [text for text in [*texts, current] if _is_prose(text)]


def _sentences(docstring: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH.split(_RULES.sub("", docstring)):
        if ">>>" not in paragraph and "```" not in paragraph:
            yield from _SENTENCE.split(mask_names(" ".join(paragraph.split())))


def mask_names(text: str) -> str:
    """Replace the names and usual aliases of the libraries by ``MASK``."""
    return _NAMES.sub(MASK, text)


def _is_prose(text: str) -> bool:
    if not MIN_CHARS <= len(text) <= MAX_CHARS or not text.isprintable():
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= _MIN_LETTER_SHARE * len(text)
