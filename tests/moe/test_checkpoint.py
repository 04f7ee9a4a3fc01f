"""Checkpoints on the disk: whole, in shards, with shards that are missing or torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError
from fedmoe_app.moe.checkpoint import check_checkpoint, safetensors_files, weight_files

from .families import build

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    build("Qwen3Moe").save_pretrained(tmp_path / "base", max_shard_size="40KB")
    return tmp_path / "base"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=rf'model.name = "{folder}": {message}'):
        check_checkpoint(str(folder))


def test_a_whole_checkpoint_passes(sharded: Path, tmp_path: Path) -> None:
    check_checkpoint(str(sharded))
    assert safetensors_files("base", sharded) == shards(sharded)
    assert len(shards(sharded)) > 2
    build("Qwen3Moe").save_pretrained(tmp_path / "single")
    check_checkpoint(str(tmp_path / "single"))


@pytest.mark.parametrize("name", ["qwen3moe-tiny", "owner/model"])
def test_presets_and_hub_names_are_not_looked_at(name: str) -> None:
    check_checkpoint(name)


def test_other_files_beside_the_model_do_not_count(tmp_path: Path) -> None:
    build("Qwen3Moe").save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    check_checkpoint(str(tmp_path))
    assert safetensors_files("base", tmp_path) == [tmp_path / "model.safetensors"]


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost, number = shards(sharded)[1], len(shards(sharded))
    lost.unlink()
    refused(sharded, f"1 of its {number} weight files are missing, such as {lost.name}; copy or")


@pytest.mark.parametrize("kept", [0, 4, 0.5, -1], ids=["empty", "no header", "half", "a byte"])
def test_a_shard_that_is_cut_off_is_named(kept: float, sharded: Path) -> None:
    torn = shards(sharded)[-1]
    content = torn.read_bytes()
    torn.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(sharded, rf"{torn.name} is cut off or damaged \(.*copy or download the model again")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_named(text: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    refused(sharded, "model.safetensors.index.json cannot be read")


def test_pickled_weights_serve_where_experts_are_not_read_one_by_one(tmp_path: Path) -> None:
    build("Qwen3Moe").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_checkpoint(str(tmp_path))
    assert weight_files("base", tmp_path) == [tmp_path / "pytorch_model.bin"]
    with pytest.raises(ConfigError, match="holds only pytorch_model.bin.*save_pretrained"):
        safetensors_files("base", tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    refused(tmp_path, "holds no weight files; copy or download the model again")


def test_a_missing_pickled_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({}, tmp_path / "pytorch_model-1.bin")
    refused(tmp_path, "1 of its 2 weight files are missing, such as pytorch_model-2.bin")


def test_one_file_goes_before_an_index_as_in_transformers(sharded: Path) -> None:
    build("Qwen3Moe").save_pretrained(sharded.parent / "single")
    (sharded.parent / "single/model.safetensors").rename(sharded / "model.safetensors")
    assert safetensors_files("base", sharded) == [sharded / "model.safetensors"]
