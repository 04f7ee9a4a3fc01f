"""The notebooks in examples/ run from the first cell to the last, and hold no outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_it_holds_no_outputs(notebook: Path) -> None:
    for cell in code_of(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


def last_value(cell: dict[str, Any], names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does; return the value of its last line, if that is an expression."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell["id"], "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)


@pytest.mark.slow
@every_notebook
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [last_value(cell, names) for cell in code_of(notebook)]
    pictures = [value._repr_png_() for value in shown if hasattr(value, "_repr_png_")]
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert names["done"].metrics["accuracy"].iloc[-1] > 0.5
    assert list(names["found"].summary["scheme"]) == ["fedavg", "fedprox", "fedmoe"]
