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

from fedmoe_app import read_metrics, read_status, run_in_process
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.server.recorder import Checkpoints
from fedmoe_app.server.resume import find_checkpoint
from tests.homes import home_with_cache
from tests.server.test_resume import config, lines_without

APPEND = """
import pathlib, resource, sys
from fedmoe_app.results.folder import RunFolder
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
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


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


@pytest.fixture
def run(tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The run config of a short run whose results lie on the small disk."""
    monkeypatch.setenv("FEDMOE_HOME", str(home_with_cache(tmp_path)))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    flat = config(tmp_path) | {"wire.downloads": "full"}
    return flat | {"output-dir": str(small_disk), "run-name": "full"}


def assert_same(folder: Path, other: Path) -> None:
    assert lines_without(folder, "seconds") == lines_without(other, "seconds")
    mine, theirs = (load_file(f / "model" / "model.safetensors") for f in (folder, other))
    assert all(bool((tensor == theirs[name]).all()) for name, tensor in mine.items())


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(
    tmp_path: Path, small_disk: Path, run: dict[str, Any]
) -> None:
    calm = run_in_process(run | {"output-dir": str(tmp_path), "run-name": "calm"}, 2)
    folder, on_round = small_disk / "full", Checkpoints.on_round
    lines: list[bytes] = []

    def fill_after_round_1(self: Checkpoints, record: RoundRecord) -> None:
        on_round(self, record)
        if record.server_round == 1:
            lines.append((folder / "metrics.jsonl").read_bytes())
            fill(small_disk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_round", fill_after_round_1)
        with pytest.raises(Exception, match="No space left|os error 28"):
            run_in_process(run, 2)
    status = read_status(folder)
    assert status["state"] == "failed"
    assert "No space left" in status["error"] or "os error 28" in status["error"]
    assert (folder / "metrics.jsonl").read_bytes().startswith(lines[0])
    assert [line["round"] for line in read_metrics(folder)][:2] == [0, 1]
    assert find_checkpoint(folder).snapshot.server_round == 1
    assert not list(folder.glob(".model*"))

    with pytest.raises(Exception, match="No space left|os error 28"):  # still no room
        run_in_process(run | {"resume": str(folder)}, 2)
    assert read_status(folder)["state"] == "failed"
    (small_disk / "ballast").unlink()
    run_in_process(run | {"resume": str(folder)}, 2)
    assert_same(folder, calm)
    assert read_status(folder)["state"] == "completed"
