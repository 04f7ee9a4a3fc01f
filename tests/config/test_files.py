from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fedmoe_app.config.files import build_once, follow_umask, new_folder, write_atomic


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


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_nobody_else_reads_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of a private file may be in it, whatever the umask and the libraries do."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))

    def build(folder: Path) -> None:
        (folder / "deep").mkdir(mode=0o755)
        for file in (folder / "rows.arrow", folder / "deep" / "rows.json"):
            file.write_text("secret")
            file.chmod(0o644)

    before = os.umask(0o022)
    try:
        build_once(tmp_path / "home" / "cache" / "rows" / "a", build)
    finally:
        os.umask(before)
    private = {"cache": 0o700, "rows": 0o700, "a": 0o700, "deep": 0o700}
    assert modes(tmp_path / "home") == private | {"rows.arrow": 0o600, "rows.json": 0o600}
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755  # results lie there, too


def test_what_an_earlier_release_left_readable_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir(mode=0o755)
    (folder / "rows.json").write_text("secret")
    (folder / "rows.json").chmod(0o644)
    build_once(folder, lambda draft: pytest.fail("it is there"))
    assert modes(tmp_path) == {"rows": 0o700, "rows.json": 0o600}


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "a.json", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_libraries_private_files_get_the_modes_of_their_neighbours(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir(mode=0o700)
    (model / "model.safetensors").touch(mode=0o600)
    (model / "config.json").touch(mode=0o644)
    before = os.umask(0o027)
    try:
        follow_umask(model)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {
        "model": 0o750, "model.safetensors": 0o640, "config.json": 0o640,
    }  # fmt: skip


def test_a_new_folder_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), new_folder(target) as draft:
        (draft / "half").touch()
        raise RuntimeError("no")
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as draft:
        (draft / "weights").write_text("1")
        assert not target.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]


def test_an_older_folder_gives_way_only_where_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("1", "2"):
        with new_folder(target, replace=True) as draft:
            (draft / "weights").write_text(text)
    (tmp_path / ".model.x").mkdir()  # of a writer that was killed
    with pytest.raises(OSError, match="not empty"), new_folder(target) as draft:
        (draft / "weights").write_text("3")
    assert (target / "weights").read_text() == "2"
    with new_folder(target, replace=True) as draft:
        (draft / "weights").write_text("4")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "weights").read_text() == "4"
