"""From a run config to the model: the names of the classes, checkpointing."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ConfigError
from fedmoe_app.tasks.setup import check_base, device, load_setup
from tests.bases import save_base
from tests.conftest import make_config


def test_the_models_config_knows_the_class_names() -> None:
    model = load_setup(make_config(), ("x", "y", "z")).model
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.score.weight.shape == (3, 64)


@pytest.mark.parametrize("preset", ["qwen3moe-tiny", "switch-tiny"])
def test_gradient_checkpointing_gives_the_same_gradients_without_a_warning(preset: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        overrides = {"model.name": preset, "train.gradient-checkpointing": checkpointing}
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            model = load_setup(make_config(**overrides), ("x", "y")).model.train()
        used = [getattr(module, "gradient_checkpointing", False) for module in model.modules()]
        assert any(used) == checkpointing
        ids = torch.arange(300, 308).reshape(1, 8)
        labels = {"decoder_input_ids": ids} if preset == "switch-tiny" else {}
        model(input_ids=ids, **labels).logits.float().square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    without, with_it = gradients
    assert all(
        torch.equal(grad, with_it[name]) for name, grad in without.items() if grad is not None
    )
    assert sum(grad is not None for grad in without.values()) > 10


@pytest.mark.parametrize("train", ["experts", "expert-lora"])
def test_what_lies_below_the_first_trained_layer_is_never_run_twice(
    tmp_path: Path, train: str
) -> None:
    """Of four layers the last two have experts; the rest is a frozen base."""
    save_base(tmp_path, "Qwen3Moe", num_hidden_layers=4, mlp_only_layers=[0, 1])
    gradients, runs = [], []
    for checkpointing in (False, True):
        overrides = {"model.name": str(tmp_path), "data.task": "causal-lm", "data.partition": "iid"}
        overrides |= {"model.train": train}
        config = make_config(**overrides, **{"train.gradient-checkpointing": checkpointing})
        model = load_setup(config, ()).model.train()
        count = [0] * 4
        for index, layer in enumerate(model.model.layers):
            layer.input_layernorm.register_forward_hook(
                lambda *_, index=index, count=count: count.__setitem__(index, count[index] + 1)
            )
        model(input_ids=torch.arange(8).reshape(1, 8)).logits.float().square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        runs.append(count)
    assert runs == [[1, 1, 1, 1], [1, 1, 2, 2]]
    without, with_it = gradients
    assert without.keys() == with_it.keys()
    assert all(torch.equal(grad, with_it[n]) for n, grad in without.items() if grad is not None)
    assert any(grad is not None for grad in without.values())


@pytest.mark.parametrize(
    ("train", "gates", "trained"),
    [("all", False, True), ("experts", True, True), ("experts", False, False)],
)
def test_the_shape_tells_whether_gates_are_trained(train: str, gates: bool, trained: bool) -> None:
    config = make_config(**{"model.train": train, "model.gates": gates})
    shape = load_setup(config, ("x", "y")).shape
    assert (shape.num_layers, shape.num_experts, shape.top_k) == (2, 8, 2)
    assert shape.gates_trained == trained


def test_the_server_can_be_kept_off_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device().type, device("auto").type, device("cpu").type] == ["cuda", "cuda", "cpu"]


FROZEN = {"model.train": "experts", "data.task": "causal-lm", "data.partition": "iid"}


def fingerprint_of(folder: Path, **overrides: Any) -> str:
    config = make_config(**{"model.name": str(folder), "data.max-length": 16} | overrides)
    return load_setup(config, ("x", "y")).base_fingerprint


def test_where_all_is_trained_what_is_not_still_counts(tmp_path: Path) -> None:
    """Buffers, and parameters that a family freezes; a family without them has no fingerprint."""
    save_base(tmp_path / "mixtral", "Mixtral")
    assert fingerprint_of(tmp_path / "mixtral", **FROZEN | {"model.train": "all"}) == ""
    model = save_base(tmp_path / "deepseek", "DeepseekV3")
    every = {**FROZEN, "model.train": "all"}
    before = fingerprint_of(tmp_path / "deepseek", **every)
    assert before
    with torch.no_grad():
        model.get_parameter("lm_head.weight").add_(1)
    model.save_pretrained(tmp_path / "deepseek")
    assert fingerprint_of(tmp_path / "deepseek", **every) == before  # trained, so sent
    model.get_buffer("model.layers.2.mlp.gate.e_score_correction_bias")[-1] += 1e-3
    model.save_pretrained(tmp_path / "deepseek")
    assert fingerprint_of(tmp_path / "deepseek", **every) != before


@pytest.mark.parametrize("train_head", [True, False])
def test_a_new_head_counts_where_it_is_frozen(train_head: bool, tmp_path: Path) -> None:
    """It is in no file: the seed makes it, and another seed another one."""
    save_base(tmp_path / "base", "Qwen3Moe")
    overrides = {"model.train": "experts", "model.train-head": train_head}
    first, again, other = (
        fingerprint_of(tmp_path / "base", seed=seed, **overrides) for seed in (1, 1, 2)
    )
    assert first == again
    assert (first == other) == train_head


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_preset_is_hashed_before_it_is_quantised(quantization: str) -> None:
    """Packed bytes may differ between CPU and GPU, and would hide nothing else."""
    lora = {"model.train": "expert-lora", "model.quantization": quantization}
    setups = [load_setup(make_config(seed=seed, **lora), ("x", "y")) for seed in (1, 2)]
    assert setups[0].base_fingerprint != setups[1].base_fingerprint
    plain = load_setup(make_config(seed=1, **{"model.train": "expert-lora"}), ("x", "y"))
    assert setups[0].base_fingerprint == plain.base_fingerprint


def test_a_node_with_another_frozen_tensor_is_refused(tmp_path: Path) -> None:
    model = save_base(tmp_path / "base", "Qwen3Moe")
    config = make_config(**{"model.name": str(tmp_path / "base"), "data.max-length": 16} | FROZEN)
    server = load_setup(config, ()).base_fingerprint
    check_base(load_setup(config, ()), server)
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.o_proj.weight")[-1, -1] += 1e-3
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match="this node's base model has fingerprint"):
        check_base(load_setup(config, ()), server)
