"""What clients keep on disk: written whole, read back, dropped when its time has come."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmoe_app.client.store import MAX_AGE_DAYS, RoundStore, drop_client

RUN, OTHER = "0123456789abcdef", "fedcba9876543210"
BAD_KEYS = [
    "../../x",
    "",
    "0123",
    "0123456789abcdeg",
    "/etc/passwd",
    "a" * 65,
    "ABCDEF012345",
    f"{RUN}\n",
]


@pytest.fixture(autouse=True)
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which runs keep their clients' files."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    return tmp_path / "clients"


def values(number: float) -> dict[str, Tensor]:
    return {"layers.0.gate.weight": torch.full((2, 3), number), "b": torch.tensor([number])}


def saved(client: int, *rounds: int, run: str = RUN) -> RoundStore:
    files = RoundStore(run, client)
    for number in rounds:
        files.save(number, values(number))
    return files


def names(clients: Path) -> list[str]:
    """All files, hidden ones included, by run and client."""
    return sorted(str(path.relative_to(clients)) for path in clients.rglob("*") if path.is_file())


def round_of(files: RoundStore, server_round: int) -> tuple[int, float | None]:
    """The round that was loaded, and the value of its tensors."""
    kept = files.load(server_round)
    return kept.server_round, float(kept.tensors["b"]) if kept.tensors else None


def test_tensors_come_back_as_they_were() -> None:
    mixed = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "graph": torch.ones(2, requires_grad=True) * 2,
        "half": torch.ones(1, dtype=torch.bfloat16),
        "steps": torch.tensor(3),
    }
    RoundStore(RUN, 0).save(1, mixed)
    kept = RoundStore(RUN, 0).load(2)
    assert kept.server_round == 1
    assert kept.tensors.keys() == mixed.keys()
    assert all(torch.equal(kept.tensors[name], tensor) for name, tensor in mixed.items())
    assert kept.tensors["half"].dtype == torch.bfloat16


def test_nothing_kept_is_round_zero() -> None:
    assert round_of(RoundStore(RUN, 0), 5) == (0, None)
    RoundStore(RUN, 0).save(1, {})  # a client that trained no expert has nothing to keep
    assert round_of(RoundStore(RUN, 0), 2) == (1, None)


def test_the_last_round_before_is_taken() -> None:
    files = saved(0, 1, 4)
    assert round_of(files, 5) == (4, 4.0)
    assert round_of(files, 9) == (4, 4.0)  # left out in between
    assert round_of(files, 4) == (1, 1.0)  # round 4 asked for again starts from the same
    assert round_of(files, 1) == (0, None)


def test_only_two_rounds_stay(clients: Path) -> None:
    saved(3, 1, 2, 5, 6)
    assert names(clients) == [f"{RUN}/client-3/round-{n}.safetensors" for n in (5, 6)]


def test_rounds_after_one_that_is_repeated_are_dropped(clients: Path) -> None:
    files = saved(0, 1, 2, 3)
    files.save(2, values(20.0))
    assert names(clients) == [f"{RUN}/client-0/round-2.safetensors"]
    assert round_of(files, 3) == (2, 20.0)


def test_ten_comes_after_nine() -> None:
    assert round_of(saved(0, 9, 10), 11) == (10, 10.0)


def test_a_file_is_complete_or_not_there(clients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = saved(0, 1)

    def fail(source: str, target: Path) -> None:
        raise OSError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk is full"):
            files.save(2, values(2.0))
    assert names(clients) == [f"{RUN}/client-0/round-1.safetensors"]  # no draft beside it
    assert round_of(files, 3) == (1, 1.0)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, None])
def test_a_damaged_file_falls_back_to_the_round_before(
    clients: Path, content: bytes | None
) -> None:
    files = saved(0, 1, 2)
    last = clients / RUN / "client-0" / "round-2.safetensors"
    last.write_bytes(last.read_bytes()[:-3] if content is None else content)
    assert round_of(files, 3) == (1, 1.0)
    (clients / RUN / "client-0" / "round-1.safetensors").write_bytes(b"")
    assert round_of(files, 3) == (0, None)
    files.save(3, values(3.0))
    assert round_of(files, 4) == (3, 3.0)


def test_other_files_in_the_folder_are_left_alone(clients: Path) -> None:
    files = saved(0, 1)
    folder = clients / RUN / "client-0"
    for name in ("notes.txt", "round-9.safetensors.bak", ".round-3.safetensors.x1"):
        (folder / name).write_text("mine")
    assert round_of(files, 99) == (1, 1.0)
    files.save(2, values(2.0))
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_no_hexadecimal_number_is_refused(key: str, tmp_path: Path) -> None:
    victim = tmp_path / "x" / "client-0"
    victim.mkdir(parents=True)
    with pytest.raises(ValueError, match="must be 8 to 64 hexadecimal digits"):
        RoundStore(key, 0)
    with pytest.raises(ValueError, match="must be 8 to 64 hexadecimal digits"):
        drop_client(key, 0)
    assert victim.is_dir()


# -- dropping ----------------------------------------------------------------------------------


def test_two_clients_share_a_folder_and_one_is_dropped(clients: Path) -> None:
    one, two = saved(1, 1, 2), saved(12, 1)
    elsewhere = saved(1, 7, run=OTHER)
    drop_client(RUN, 1)
    assert round_of(one, 9) == (0, None)
    assert round_of(two, 9) == (1, 1.0)
    assert round_of(elsewhere, 9) == (7, 7.0)
    drop_client(RUN, 12)
    assert not (clients / RUN).exists()
    drop_client(RUN, 12)  # nothing left to drop is no fault
    assert [path.name for path in clients.iterdir()] == [OTHER]


def age(folder: Path, days: float) -> None:
    """Make everything in a folder that old."""
    then = time.time() - days * 86400
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_runs_that_never_ended_are_dropped_after_some_weeks(clients: Path) -> None:
    for run, days in ((RUN, MAX_AGE_DAYS + 1), (OTHER, MAX_AGE_DAYS - 1)):
        saved(0, 1, run=run)
        age(clients / run, days)
    saved(0, 1, run="a" * 8)  # the first file of a new run
    assert sorted(path.name for path in clients.iterdir()) == ["a" * 8, OTHER]


def test_one_young_file_keeps_a_run(clients: Path) -> None:
    saved(0, 1)
    age(clients / RUN, MAX_AGE_DAYS + 1)
    saved(5, 1)  # in the same run
    saved(0, 1, run=OTHER)
    assert names(clients / RUN) == [f"client-{c}/round-1.safetensors" for c in (0, 5)]


def test_a_file_that_vanishes_meanwhile_is_no_fault(clients: Path) -> None:
    """Other runs of this machine write, rename and drop their files at the same time."""
    saved(0, 1, run=OTHER)
    (clients / OTHER / "client-0" / ".round-2.safetensors.x").symlink_to("gone")  # stat() fails
    assert round_of(saved(0, 1), 2) == (1, 1.0)
