"""Fingerprints of bases: the same for the same weights and config, another for any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedmoe_app.config import ConfigError
from fedmoe_app.moe.fingerprint import (
    SAMPLED_VALUES,
    checkpoint_fingerprint,
    preset_fingerprint,
)
from fedmoe_app.moe.loading import PRESETS, load_model

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


@pytest.mark.parametrize("column", [0, 31])
def test_a_value_of_the_first_row_matters(column: int, base: Path) -> None:
    before, weight = checkpoint_fingerprint(str(base)), router(base)
    weight[0, column] = torch.nextafter(weight[0, column], torch.tensor(torch.inf))
    assert changed(base, {ROUTER: weight}) != before


def test_later_rows_are_not_read(base: Path) -> None:
    """The price of reading kilobytes only: it is a check for mix-ups, not for forgeries."""
    before, weight = checkpoint_fingerprint(str(base)), router(base)
    weight[1] += 1
    assert changed(base, {ROUTER: weight}) == before
    assert weight.shape[1] < SAMPLED_VALUES


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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_is_that_of_its_seed(preset: str) -> None:
    def fingerprint(seed: int) -> str:
        torch.rand(seed + 1)  # whatever the global random state is
        options: dict[str, Any] = {"vocab_size": 97, "pad_token_id": 0, "max_length": 16}
        return preset_fingerprint(load_model(preset, task="causal-lm", seed=seed, **options))

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)
