"""From a run config to the model: the names of the classes, checkpointing."""

import warnings

import pytest
import torch

from fedmoe_app.local.setup import device, load_setup
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
