from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedmoe_app.data.cache import build_once


def test_builds_once(tmp_path: Path) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "value").write_text("1")

    for _ in range(2):
        assert (build_once(tmp_path / "a" / "thing", build) / "value").read_text() == "1"
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thing"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        build_once(tmp_path / "thing", build)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_builders_drops_its_copy(tmp_path: Path) -> None:
    both_started = threading.Barrier(2)

    def build(folder: Path) -> None:
        both_started.wait(timeout=10)
        (folder / "value").write_text("same")

    target = tmp_path / "thing"
    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
    assert (target / "value").read_text() == "same"
