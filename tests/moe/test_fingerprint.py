"""Fingerprints of bases: the same for the same weights and config, another for any other."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedmoe_app import ConfigError, LoadSpec, load_model
from fedmoe_app.moe import tensor_hashes
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint, preset_fingerprint
from fedmoe_app.moe.loading import PRESETS

from .families import build

ROUTER = "model.layers.0.mlp.gate.weight"  # [4, 32]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build("Qwen3Moe").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def changed(base: Path, tensors: dict[str, Tensor]) -> str:
    """Return the fingerprint of the base with other tensors in place of its own."""
    file = base / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
    return checkpoint_fingerprint(str(base))


def router(base: Path) -> Tensor:
    return load_file(base / "model.safetensors")[ROUTER]


def test_shards_do_not_matter(base: Path, tmp_path: Path) -> None:
    build("Qwen3Moe").save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    wanted = checkpoint_fingerprint(str(base))
    assert checkpoint_fingerprint(str(tmp_path / "sharded")) == wanted
    assert len(wanted) == 32 and int(wanted, 16) > 0


def test_other_weights_have_another(base: Path, tmp_path: Path) -> None:
    build("Qwen3Moe", seed=1).save_pretrained(tmp_path / "other")
    assert checkpoint_fingerprint(str(tmp_path / "other")) != checkpoint_fingerprint(str(base))


def test_writing_the_same_tensors_again_changes_nothing(base: Path) -> None:
    before = checkpoint_fingerprint(str(base))
    assert changed(base, {}) == before


def bump(tensor: Tensor, place: int) -> Tensor:
    """Return a copy in which one value is the next larger one that its type has."""
    bumped = tensor.clone()
    flat = bumped.view(-1)
    flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf, dtype=tensor.dtype))
    return bumped


def save(folder: Path, tensors: dict[str, Tensor], form: str) -> None:
    """Write the weights of a checkpoint in one of its forms; the config is there."""
    if form == "single":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "pickled":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        names, files = list(tensors), ["a.safetensors", "b.safetensors"]
        halves = (names[::2], names[1::2])
        for file, half in zip(files, halves, strict=True):
            save_file({n: tensors[n] for n in half}, folder / file, metadata={"format": "pt"})
        index = {n: file for file, half in zip(files, halves, strict=True) for n in half}
        text = json.dumps({"weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize("place", [0, -1], ids=["first value", "last value"])
@pytest.mark.parametrize("form", ["single", "sharded", "pickled"])
def test_every_tensor_matters(form: str, place: int, tmp_path: Path) -> None:
    """Each in turn, the least change of one value, wherever it is."""
    build("DeepseekV3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save(tmp_path, tensors, form)
    found = {checkpoint_fingerprint(str(tmp_path))}
    for name, tensor in tensors.items():
        save(tmp_path, tensors | {name: bump(tensor, place)}, form)
        found.add(checkpoint_fingerprint(str(tmp_path)))
    assert len(found) == len(tensors) + 1
    assert any("e_score_correction_bias" in name for name in tensors)  # a buffer counts, too


def test_two_tensors_that_change_places_matter(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    up, gate = (f"model.layers.0.mlp.experts.0.{name}_proj.weight" for name in ("up", "gate"))
    before = checkpoint_fingerprint(str(base))
    assert changed(base, {up: tensors[gate], gate: tensors[up]}) != before


def test_the_format_does_not_matter(base: Path, tmp_path: Path) -> None:
    tensors, wanted = load_file(base / "model.safetensors"), checkpoint_fingerprint(str(base))
    (base / "model.safetensors").unlink()
    save(base, tensors, "pickled")
    assert checkpoint_fingerprint(str(base)) == wanted
    save(base, tensors, "sharded")  # read in place of the pickled one
    (base / "pytorch_model.bin").write_bytes(b"")
    assert checkpoint_fingerprint(str(base)) == wanted


def test_a_tensor_that_is_in_no_file_matters(base: Path) -> None:
    heads = [{"score.weight": torch.full((2, 4), value)} for value in (0.0, 1.0)]
    found = {checkpoint_fingerprint(str(base), beside) for beside in (None, *heads)}
    assert len(found) == 3


def test_files_are_read_once(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tensor_hashes, "_SETTLED", -1)  # as if the file had been there for long
    wanted = checkpoint_fingerprint(str(base))
    (entry,) = (tmp_path / "home/cache/fingerprints").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700
    with monkeypatch.context() as broken:
        broken.setattr(tensor_hashes, "_safetensors", None)  # reading would raise
        assert checkpoint_fingerprint(str(base)) == wanted
    entry.write_text("{")
    assert checkpoint_fingerprint(str(base)) == wanted


@pytest.mark.parametrize("same_times", [False, True])
def test_the_cache_sees_a_file_that_changed(
    same_times: bool, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also one of the same size whose time of change was put back."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tensor_hashes, "_SETTLED", -1)
    file = base / "model.safetensors"
    before, old = checkpoint_fingerprint(str(base)), file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    with file.open("r+b") as raw:
        raw.seek(-1, 2)
        raw.write(b"\x7f")
    if same_times:
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_size == old.st_size
    assert checkpoint_fingerprint(str(base)) != before


def test_a_file_that_changed_just_now_is_not_kept(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    (base / "model.safetensors").touch()
    checkpoint_fingerprint(str(base))
    assert not (tmp_path / "home/cache/fingerprints").exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = checkpoint_fingerprint(str(base))
    (tmp_path / "home").write_text("a file where the folder should be")
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tensor_hashes, "_SETTLED", -1)
    assert checkpoint_fingerprint(str(base)) == wanted


def test_types_and_shapes_matter(base: Path) -> None:
    before, weight = checkpoint_fingerprint(str(base)), router(base)
    found = {
        before,
        changed(base, {ROUTER: weight.to(torch.bfloat16)}),
        changed(base, {ROUTER: weight.view(torch.int32)}),  # the same bytes
        changed(base, {ROUTER: weight[:2].clone()}),  # the same first row
        changed(base, {ROUTER: weight, "extra": torch.zeros(())}),
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    ("key", "value", "matters"),
    [
        ("num_experts_per_tok", 1, True),
        ("rms_norm_eps", 1e-5, True),
        ("transformers_version", "5.99.0", False),
        ("use_cache", True, False),
        ("dtype", "bfloat16", False),
    ],
)
def test_the_config_matters_where_it_changes_the_outputs(
    key: str, value: Any, matters: bool, base: Path
) -> None:
    before, file = checkpoint_fingerprint(str(base)), base / "config.json"
    config = json.loads(file.read_text())
    assert config[key] != value
    file.write_text(json.dumps(dict(reversed(config.items())) | {key: value}))
    assert (checkpoint_fingerprint(str(base)) != before) == matters


def test_a_missing_shard_has_no_fingerprint(tmp_path: Path) -> None:
    build("Qwen3Moe").save_pretrained(tmp_path, max_shard_size="40KB")
    next(iter(tmp_path.glob("*.safetensors"))).unlink()
    with pytest.raises(ConfigError, match="weight files are missing"):
        checkpoint_fingerprint(str(tmp_path))


OPTIONS: dict[str, Any] = {"vocab_size": 97, "pad_token_id": 0, "max_length": 16}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_is_that_of_its_seed(preset: str) -> None:
    def fingerprint(seed: int) -> str:
        torch.rand(seed + 1)  # whatever the global random state is
        return preset_fingerprint(
            load_model(LoadSpec(preset, task="causal-lm", seed=seed, **OPTIONS))
        )

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


@pytest.mark.parametrize("preset", ["qwen3moe-tiny", "switch-tiny"])
def test_every_tensor_of_a_preset_matters(preset: str) -> None:
    model = load_model(LoadSpec(preset, task="causal-lm", **OPTIONS))
    found = {preset_fingerprint(model)}
    for parameter in model.parameters():
        before = parameter.detach().clone()
        parameter.data = bump(before, -1)
        found.add(preset_fingerprint(model))
        parameter.data = before
    assert len(found) == 1 + len(list(model.parameters()))
