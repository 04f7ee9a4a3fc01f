"""Checkpoints of a toy state: written whole or not at all, read with every byte checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ConfigError, read_metrics
from fedmoe_app.results.folder import (
    CHECKPOINTS,
    METRICS_FILE,
    RunFolder,
    list_checkpoints,
    results_of,
)
from fedmoe_app.server.checkpoint import (
    BROADCAST_FILE,
    HEADER_FILE,
    STATE_FILE,
    CheckpointError,
    Counters,
    Identity,
    Snapshot,
    StoredPlacement,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from fedmoe_app.server.resume import check_same_config, check_same_run, find_checkpoint, set_back
from fedmoe_app.wire.arrays import view_state
from fedmoe_app.wire.records import encode_state
from tests.conftest import flat_config
from tests.toy import assert_same, toy_state

KEY = "0123456789abcdef"
IDENTITY = Identity(flat_config(), ("yes", "no"), "data", "base")


def snapshot(server_round: int) -> Snapshot:
    """A state whose expert is made of views of one vector, as a fold leaves it."""
    state = toy_state()
    vector = torch.tensor([0.1, 2.0, -3.5])
    state.experts[0, 1] = {"up": vector[:2], "down": vector[2:]}
    state.dense["b"], state.dense["a"] = torch.ones(1, dtype=torch.bfloat16), torch.zeros(0)
    broadcast = {"reference": torch.rand(2, 3), "empty": torch.zeros(0, 2)}
    held = {3: StoredPlacement(2, [[0, 2], [1]])}
    rests = {"client 3": [2, 9], "node 8123": [1, 7]}
    roster, sizes = {8123456789012345678: 3}, {3: 40}
    counters = Counters(server_round, True, {3: 1, 0: 2}, roster, held, sizes, rests)
    return Snapshot(server_round, KEY, state, broadcast, counters)


def write(results: Path, *rounds: int) -> Path:
    for server_round in rounds:
        write_checkpoint(results, snapshot(server_round), IDENTITY, {"python": "3"})
    return results / CHECKPOINTS / f"round-{rounds[-1]:05d}"


def test_everything_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written = snapshot(7)
    path = write_checkpoint(tmp_path, written, IDENTITY, {"python": "3"})
    found = read_checkpoint(path)
    assert_same(found.snapshot.state, written.state)
    # Vectors are made of an expert's tensors in this order; safetensors has its own.
    assert [name for name, _ in found.snapshot.state.named()] == [
        name for name, _ in written.state.named()
    ]
    assert list(found.snapshot.state.experts[0, 1]) == ["up", "down"]
    assert found.snapshot.broadcast["reference"].equal(written.broadcast["reference"])
    assert replace(found.snapshot, state=written.state, broadcast={}) == replace(
        written, broadcast={}
    )
    assert (found.identity, found.versions) == (IDENTITY, {"python": "3"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_json(path: Path) -> None:
    path.write_text("[1]")


DAMAGES = (truncate, flip, empty, replace_by_json, Path.unlink)


@pytest.mark.parametrize("name", [STATE_FILE, BROADCAST_FILE, HEADER_FILE])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    name: str, damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, 1, 2)
    damage(path / name)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(path)
    assert find_checkpoint(tmp_path).snapshot.server_round == 1
    assert f"checkpoint passed over: {path / name}: " in caplog.text


def test_a_header_changed_by_hand_is_refused(tmp_path: Path) -> None:
    header = write(tmp_path, 4) / HEADER_FILE
    header.write_text(json.dumps(json.loads(header.read_text()) | {"round": 5}))
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        read_checkpoint(header.parent)


def test_no_checkpoint_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["round-00001"]


def test_pruning_keeps_the_newest_and_drops_what_a_crash_left(tmp_path: Path) -> None:
    write(tmp_path, 9, 10, 2, 100_000)
    (tmp_path / CHECKPOINTS / ".round-00011.x").mkdir()
    prune_checkpoints(tmp_path, 2)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["round-100000", "round-00010"]
    assert len(list((tmp_path / CHECKPOINTS).iterdir())) == 2


# -- going on ----------------------------------------------------------------------------------


def test_a_result_folder_and_a_checkpoint_may_be_named(tmp_path: Path) -> None:
    newest = write(tmp_path, 1, 2)
    first = newest.with_name("round-00001")
    assert find_checkpoint(tmp_path).path == newest
    assert find_checkpoint(first).snapshot.server_round == 1
    assert results_of(first) == results_of(tmp_path) == tmp_path


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint there; name the result folder of a run"):
        find_checkpoint(tmp_path)
    path = write(tmp_path, 1)
    with pytest.raises(ConfigError, match="copy the whole result folder instead"):
        find_checkpoint(path.rename(tmp_path / "mine"))
    damaged = write(tmp_path, 1, 2)
    for checkpoint in list_checkpoints(tmp_path):
        truncate(checkpoint / HEADER_FILE)
    with pytest.raises(ConfigError, match=r"round-00002/.*cut off.*round-00001/.*cut off"):
        find_checkpoint(damaged)


def refuse(tmp_path: Path, message: str, identity: Identity, **changes: Any) -> None:
    checkpoint = find_checkpoint(tmp_path)
    state = snapshot(2).state
    state.dense |= changes
    with pytest.raises(ConfigError, match=message):
        check_same_run(checkpoint, identity, state)


def test_every_difference_is_named(tmp_path: Path) -> None:
    write(tmp_path, 2)
    check_same_run(find_checkpoint(tmp_path), IDENTITY, snapshot(2).state)
    config = IDENTITY.config | {"seed": 43, "data.alpha": 0.1, "new-key": 1}
    refuse(
        tmp_path,
        r"data\.alpha = 0\.5, now 0\.1; new-key = no such key, now 1; seed = 42, now 43$",
        replace(IDENTITY, config=config),
    )
    refuse(
        tmp_path,
        r"label names: \['yes', 'no'\], now \['no'\]; base fingerprint: 'base', now 'x'$",
        replace(IDENTITY, label_names=("no",), base_fingerprint="x"),
    )
    refuse(
        tmp_path,
        r"model tensor a: float32\[0\], now float32\[3\]; model tensor c: none, now float32\[1\]$",
        IDENTITY,
        a=torch.ones(3),
        c=torch.ones(1),
    )


def test_limits_may_change_and_rounds_unless_a_schedule_counts_them(tmp_path: Path) -> None:
    write(tmp_path, 2)
    checkpoint, state = find_checkpoint(tmp_path), snapshot(2).state
    other = {"num-server-rounds": 9, "min-clients": 1, "round-timeout": 1.0, "output-dir": "/x"}
    check_same_run(checkpoint, replace(IDENTITY, config=IDENTITY.config | other), state)
    done = replace(IDENTITY, config=IDENTITY.config | {"num-server-rounds": 2})
    refuse(tmp_path, "2 rounds are done and num-server-rounds = 2; ask for more", done)
    linear = {"train.lr-scheduler-type": "linear"}
    write_checkpoint(tmp_path, snapshot(3), replace(IDENTITY, config=IDENTITY.config | linear), {})
    longer = replace(IDENTITY, config=IDENTITY.config | linear | {"num-server-rounds": 9})
    refuse(tmp_path, "num-server-rounds = 6, now 9$", longer)


def test_a_model_in_bfloat16_is_the_one_whose_values_were_folded(tmp_path: Path) -> None:
    state = snapshot(2).state
    folded = replace(snapshot(2), state=view_state(encode_state(state)))
    write_checkpoint(tmp_path, folded, IDENTITY, {})
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.snapshot.state.dense["b"].dtype == torch.float32
    check_same_run(checkpoint, IDENTITY, state)


def test_setting_back_cuts_lines_and_drops_later_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for server_round in range(4):
        folder.append({"round": server_round, "loss": 0.1})
        folder.append_samples(server_round, [{"prompt": "a"}, {"prompt": "b"}])
    write(folder.path, 1, 2, 3)
    with (folder.path / METRICS_FILE).open("a") as file:
        file.write('{"round": 4, "lo')
    set_back(folder.path, 2)
    assert [line["round"] for line in read_metrics(folder.path)] == [0, 1, 2]
    assert [line["round"] for line in read_metrics(folder.path / "samples.jsonl")] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
    assert [path.name for path in list_checkpoints(folder.path)] == ["round-00002", "round-00001"]


def test_another_config_is_refused_without_reading_tensors(tmp_path: Path) -> None:
    newest = write(tmp_path, 1, 2)
    for folder in list_checkpoints(tmp_path):
        (folder / STATE_FILE).write_bytes(b"")
    flat = flat_config(**{"num-server-rounds": 4})
    check_same_config(tmp_path, flat)
    check_same_config(newest, flat)
    with pytest.raises(ConfigError, match=r"of another run: data\.alpha = 0\.5, now 0\.1"):
        check_same_config(tmp_path, flat | {"data.alpha": 0.1})
    with pytest.raises(ConfigError, match="2 rounds are done and num-server-rounds = 2"):
        check_same_config(tmp_path, flat | {"num-server-rounds": 2})
    (newest / HEADER_FILE).write_text("{")  # the server passes it over, too
    check_same_config(tmp_path, flat | {"num-server-rounds": 2})
