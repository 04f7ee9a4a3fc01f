"""Fixtures of the end-to-end tests: an app that trains nothing, and a home of its own."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


@pytest.fixture
def fedmoe_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``$FEDMOE_HOME`` of this test alone."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "fedmoe"))
    return tmp_path / "fedmoe"


@pytest.fixture
def echo_app(tmp_path: Path) -> Path:
    """Folder of a Flower app that answers at once and takes the real app's run config."""
    app = Path(shutil.copytree(HERE / "echo_app", tmp_path / "app"))
    table = tomllib.loads((app / "pyproject.toml").read_text())
    real = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    table["tool"]["flwr"]["app"]["config"] = real["tool"]["flwr"]["app"]["config"]
    (app / "pyproject.toml").write_text(tomli_w.dumps(table))
    return app
