"""The spool: what waits in a file reads as it was; nothing is left of it, whatever happens."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import SCHEMES, BlockUpdates, ClientUpdate, FCMoE, ModelShape, ModelState, Server
from fedmoe_app.aggregation.store import Spool, SpoolError
from fedmoe_app.schemes.fcmoe import Kappa
from fedmoe_app.wire.spec import NumberSpec
from tests.toy import assert_same, diagnose_toy, fold_toy, own_update, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]


def updates(seed: int) -> list[ClientUpdate]:
    """Five clients with random changes of random experts, and regions of four values."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for client in range(5):
        trained = [key for key in ALL if torch.rand(1, generator=generator) < 0.7]
        experts = {key: torch.randn(3, generator=generator).tolist() for key in trained}
        region = torch.randn(2, 3, 4, generator=generator)
        count = torch.randint(1, 50, (2, 3), generator=generator)
        gate = float(torch.randn(1, generator=generator))
        stats = {"region": region, "count": count, "tokens": count.sum(dim=1)}
        found.append(own_update(client, 1 + client, experts, gate=gate, **stats))
    return found


def measured(given: list[ClientUpdate]) -> list[ClientUpdate]:
    """The same with the statistics that q-FedAvg wants."""
    return [replace(update, statistics=dict(NUMBERS)) for update in given]


NUMBERS = {"ReceivedLoss/mean": torch.tensor(2.0), "SquaredChange/all": torch.tensor(9.0)}
WANTED = {name: NumberSpec((), 0, 1e9) for name in NUMBERS}


def stored(spool: Spool, given: list[ClientUpdate]) -> list[ClientUpdate]:
    return [replace(update, changes=spool.store(update.changes)) for update in given]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("limit", [0, 60])  # bytes: none, or the first client's only
def test_every_scheme_folds_spooled_changes_bit_for_bit(
    name: str, limit: int, tmp_path: Path
) -> None:
    spool, given = Spool(tmp_path, limit), measured(updates(seed=3))
    for seed in (1, 3):  # the second round is written over the first
        spool.clear()
        waiting = stored(spool, measured(updates(seed)))
    assert spool.file_bytes > 0
    scheme = SCHEMES[name]()
    assert_same(fold_toy(scheme, waiting), fold_toy(scheme, given))
    spool.close()


def test_a_spooled_update_reads_as_it_was(tmp_path: Path) -> None:
    spool, update = Spool(tmp_path, 0), updates(seed=5)[2]
    read = spool.store(update.changes)
    assert_same(read, update.changes)
    assert (0, 5) not in read.experts
    with pytest.raises(KeyError):
        read.dense["unknown"]


def test_below_the_limit_nothing_is_written(tmp_path: Path) -> None:
    spool, update = Spool(tmp_path, 10_000), toy_update(0, 1, 2.0, ALL)
    assert spool.store(update.changes) is update.changes
    assert spool.file_bytes == 0


def test_the_file_has_no_name_so_that_no_crash_can_leave_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    stored(spool, updates(seed=1))
    assert spool.file_bytes > 0
    assert list(tmp_path.iterdir()) == []
    spool.close()


def test_a_full_disk_costs_the_reply_and_nothing_that_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, (first, second, *_) = Spool(tmp_path, 0), updates(seed=7)
    kept = spool.store(first.changes)
    before = spool.file_bytes

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, os.strerror(28))

        def seek(self, position: int) -> None: ...

    file = spool._file
    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(SpoolError, match=f"could not store it in {tmp_path}: .*No space left"):
        spool.store(second.changes)
    monkeypatch.setattr(spool, "_file", file)
    assert spool.file_bytes == before
    assert_same(kept, first.changes)
    assert_same(spool.store(second.changes), second.changes)


def test_fcmoe_reads_one_member_at_a_time(tmp_path: Path) -> None:
    """FC-MoE's sums need no stack of all changes; FedAlign's cosines do."""
    seen: list[bool] = []

    class Watched(Kappa):
        def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
            seen.append("deltas" in vars(updates))
            return super().of_expert(updates, change)

    class WatchedScheme(FCMoE):
        def server(self, model: ModelShape) -> Server:
            return replace(super().server(model), probes=(Watched(),))

    diagnose_toy(WatchedScheme(), updates(seed=2))
    assert seen and not any(seen)


def test_a_file_larger_than_memory_can_be_read(tmp_path: Path) -> None:
    """Linux promises memory for pages that could be written to, unless it is told not to."""
    mapped = Spool(tmp_path, limit=0)
    mapped.store(ModelState(dense={"w": torch.tensor([1.0, 2.0])}))
    file = mapped._file
    assert file is not None
    file.truncate(2**40)  # has holes: takes no room
    mapped._end = 2**40
    assert mapped.read(0, torch.Size([2])).tolist() == [1.0, 2.0]
    mapped.close()
