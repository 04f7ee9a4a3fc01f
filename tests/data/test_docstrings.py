from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app.data.docstrings import (
    MAX_CHARS,
    MIN_CHARS,
    CorpusError,
    docstrings,
    library_folder,
    library_version,
    mask_names,
    source_files,
    texts_of,
)

SOURCE = '''"""Module text."""
raise SystemExit("must never run")

class A:
    """Class text."""

    async def method(self):
        """Method text."""
        def inner():
            """Inner text."""

def nothing(): ...
'''


def test_docstrings_in_file_order_without_running_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    assert list(docstrings(path)) == ["Module text.", "Class text.", "Method text.", "Inner text."]


def test_a_file_that_is_not_python_yields_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("{{ template }} :")
    assert list(docstrings(path)) == []


def test_source_files_leave_tests_out_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["b.py", "a.py", "sub/c.py", "tests/d.py", "sub/test_e.py", "idle_test/f.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)]
    assert sorted(found) == ["a.py", "b.py", "sub/c.py"]
    assert [p.name for p in source_files(tmp_path)] == [Path(name).name for name in found]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("np.array and numpy.ndarray", "lib.array and lib.ndarray"),
        ("A PyTorch model, torch_dtype=None", "A lib model, lib_dtype=None"),
        ("Python 3 and CPython", "lib 3 and lib"),
        ("NumPyClient of the Flower app", "libClient of the lib app"),
        ("import pandas as pd", "import lib as lib"),
        ("nx.Graph, inputs, happy, flowers", "lib.Graph, inputs, happy, flowers"),
    ],
)
def test_names_that_give_the_answer_away_are_masked(text: str, masked: str) -> None:
    assert mask_names(text) == masked


def test_texts_are_cut_between_sentences_and_hold_no_code() -> None:
    sentence = "The quick brown fox jumps over the lazy dog near the old river bank every day."
    code = ">>> x = numpy.zeros(3)\n>>> x\narray([0., 0., 0.])"
    texts = texts_of(f"{sentence} {sentence}\n\n{code}\n\nNotes\n-----\n{sentence}\n{sentence}\n")
    assert texts == [f"{sentence} {sentence} Notes", f"{sentence} {sentence}"]
    assert all(MIN_CHARS <= len(text) <= MAX_CHARS for text in texts)


@pytest.mark.parametrize("text", ["Too short.", "x" * 2000, "1 + 2 = 3; " * 10, "a\x00b " * 20])
def test_what_is_not_prose_is_dropped(text: str) -> None:
    assert texts_of(text) == []


def test_library_folders_and_versions() -> None:
    assert (library_folder("python") / "argparse.py").is_file()
    assert (library_folder("numpy") / "__init__.py").is_file()
    assert library_version("numpy").count(".") >= 2


@pytest.mark.parametrize("function", [library_folder, library_version])
def test_a_missing_library_is_named(function: object) -> None:
    with pytest.raises(CorpusError, match=r'"nosuchlib", which is not installed.*data\.source'):
        function("nosuchlib")  # type: ignore[operator]
