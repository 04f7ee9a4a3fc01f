"""Whole runs that the tests of schemes share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.invariant.runs import GoldenRun, make_material, resume_golden, run_golden


class SharedRuns:
    """Runs on one material, each carried out once; nobody may change what they left behind."""

    def __init__(self, material: Path, folder: Path) -> None:
        self._material, self._folder = material, folder
        self._folders: dict[str, Path] = {}

    def of(self, run: GoldenRun) -> Path:
        """Return the run's result folder."""
        return self._carried_out(run) / "run"

    def home_of(self, run: GoldenRun) -> Path:
        """Return the run's ``$FEDMOE_HOME``."""
        return self._carried_out(run) / "home"

    def resumed(self, run: GoldenRun, after: int) -> Path:
        """Set a copy of the run back to the checkpoint of a round; return what it ends as."""
        copy = self._new_folder("resumed")
        shutil.copytree(self._carried_out(run), copy, symlinks=True)
        return resume_golden(run, self._material, copy, after)

    def _carried_out(self, run: GoldenRun) -> Path:
        key = repr(run)
        if key not in self._folders:
            folder = self._new_folder("run")
            run_golden(run, self._material, folder)
            self._folders[key] = folder
        return self._folders[key]

    def _new_folder(self, kind: str) -> Path:
        return self._folder / f"{kind}-{len([*self._folder.iterdir()])}"


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def runs(material: Path, tmp_path_factory: pytest.TempPathFactory) -> SharedRuns:
    return SharedRuns(material, tmp_path_factory.mktemp("runs"))
