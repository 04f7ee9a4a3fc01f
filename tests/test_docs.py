"""The code in the docs runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fedmoe_app.inprocess import run_in_process
from fedmoe_app.report.log import read_metrics
from tests.conftest import REPOSITORY, flat_config
from tests.test_inprocess import SMALL


def test_the_own_scheme_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs" / "own-scheme.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert match is not None
    package = tmp_path / "my_schemes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tokens.py").write_text(match[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = SMALL | {
        "output-dir": str(tmp_path / "out"),
        "scheme": "my_schemes.tokens:TokenWeights",
        "scheme-args": '{"power": 0.5}',
    }
    lines = read_metrics(run_in_process(flat_config(**overrides), 3))
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "my_schemes.tokens" in sys.modules
