"""A full disk ends a run with its reason, and costs nothing that was there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedmoe_app.inprocess import run_in_process
from fedmoe_app.report.log import read_metrics
from fedmoe_app.report.status import read_status
from fedmoe_app.resume import find_checkpoint
from tests.homes import home_with_cache
from tests.test_resume import AFTER_CHECKPOINT, config, interrupt, lines_without

APPEND = """
import pathlib, resource, sys
from fedmoe_app.report.log import RunFolder
folder = RunFolder(pathlib.Path(sys.argv[1]))
folder.append({"round": 0, "text": "a" * 60})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    folder.append({"round": 1, "text": "b" * 60})
except OSError as error:
    print(error.filename)
"""


def test_a_line_that_does_not_fit_is_not_there_at_all(tmp_path: Path) -> None:
    """The system writes a part of it, and says how much: 20 bytes of the second line fit."""
    command = [sys.executable, "-c", APPEND, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    file = tmp_path / "run" / "metrics.jsonl"
    assert done.stdout.strip() == str(file)
    assert read_metrics(tmp_path / "run") == [{"round": 0, "text": "a" * 60}]
    assert file.read_text().endswith("}\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system of its own size can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room at all."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(home_with_cache(tmp_path)))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    flat: dict[str, Any] = config(tmp_path) | {"wire.downloads": "full"}
    calm = run_in_process(flat | {"run-name": "calm"}, 2)
    flat |= {"output-dir": str(small_disk), "run-name": "full"}
    folder = interrupt(flat, AFTER_CHECKPOINT)
    before = (folder / "metrics.jsonl").read_bytes()
    ballast = fill(small_disk)
    with pytest.raises(Exception, match="No space left|os error 28"):
        run_in_process(flat | {"resume": str(folder)}, 2)
    status = read_status(folder)
    assert status["state"] == "failed"
    assert "space" in status["error"]
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert find_checkpoint(folder).snapshot.server_round == 1
    ballast.unlink()
    run_in_process(flat | {"resume": str(folder)}, 2)
    assert lines_without(folder, "seconds") == lines_without(calm, "seconds")
    mine, other = (load_file(f / "model" / "model.safetensors") for f in (folder, calm))
    assert all(bool((tensor == other[name]).all()) for name, tensor in mine.items())
    assert read_status(folder)["state"] == "completed"
