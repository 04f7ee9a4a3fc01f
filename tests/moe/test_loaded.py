"""Models loaded with some of their experts: equal to the masked whole model in ten families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import SGD
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from fedmoe_app import ConfigError, LoadSpec, MoELayer, find_moe_layers, load_model
from fedmoe_app.moe.layers import read_state, write_state
from fedmoe_app.moe.partial.load import expert_files, load_with_experts
from fedmoe_app.moe.partial.restrict import PlacementError, restrict_router
from fedmoe_app.moe.partial.streamed import all_experts
from fedmoe_app.moe.quantised.packed import NF4Weight
from fedmoe_app.moe.quantised.quantise import quantise
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.slots import slots_of
from fedmoe_app.moe.training.trainable import Trainables

from . import four_bit_families
from .families import EXPERTS, NAMES, batch, build


def placement_of(layers: tuple[MoELayer, ...]) -> list[list[int]]:
    """Another pair of experts in every other layer."""
    return [[1, 3] if layer.index % 2 == 0 else [0, 1, 3] for layer in layers]


def auto_of(model: PreTrainedModel) -> Any:
    return AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**batch(model)).logits


def save(folder: Path, model: PreTrainedModel, stacked: bool = False) -> PreTrainedModel:
    """Save in several files, with one tensor an expert or (where the family has it) with stacks."""
    model.save_pretrained(folder, save_original_format=not stacked, max_shard_size="20KB")
    return auto_of(model).from_pretrained(folder).eval()


def load(folder: Path, like: PreTrainedModel, placement: Any, **options: Any) -> PreTrainedModel:
    return load_with_experts(
        auto_of(like), str(folder), like.config, torch.float32, placement, **options
    )


def train(model: PreTrainedModel, layers: Any, placement: Any) -> dict[str, Tensor]:
    with Trainables(model, layers, placement) as trainables:
        optimiser = SGD(trainables.named_parameters().values(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad(set_to_none=True)
            model(**batch(model)).loss.backward()
            trainables.count_step()
            optimiser.step()
        return dict(trainables.changes().named())


def assert_close(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for key, tensor in mine.items():
        assert torch.allclose(tensor, other[key], atol=1e-5), key


@pytest.mark.parametrize(
    ("family", "stacked"),
    [(family, False) for family in NAMES]
    # gpt-oss, Granite and Switch have one format; of the others one stands for all.
    + [
        pytest.param(name, True, marks=() if name == "Mixtral" else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_equal_to_the_masked_whole_model(family: str, stacked: bool, tmp_path: Path) -> None:
    full = save(tmp_path, build(family), stacked)
    layers = find_moe_layers(full)
    placement = placement_of(layers)
    loaded = load(tmp_path, full, placement)
    free = logits_of(full)
    for layer, experts in zip(layers, placement, strict=True):
        restrict_router(layer, experts)
    masked = logits_of(full)
    assert not torch.allclose(masked, free, atol=1e-3)
    assert torch.allclose(logits_of(loaded), masked, atol=1e-5)
    with all_experts(loaded, find_moe_layers(loaded)):
        assert torch.allclose(logits_of(loaded), free, atol=1e-5)
    assert torch.allclose(logits_of(loaded), masked, atol=1e-5)


# The whole of the model once; experts and adapters in a family of each way to store them.
@pytest.mark.parametrize(
    ("family", "mode"),
    [(family, "all") for family in NAMES]
    + [
        (family, mode)
        for family in ("Olmoe", "GptOss", "SwitchTransformers")
        for mode in ("experts", "expert-lora")
    ],
)
def test_training_equals_that_of_the_masked_whole_model(
    family: str, mode: str, tmp_path: Path
) -> None:
    full = save(tmp_path, build(family))
    layers = find_moe_layers(full)
    placement = placement_of(layers)
    loaded = load(tmp_path, full, placement)
    loaded_layers = find_moe_layers(loaded)
    for model, its_layers in ((full, layers), (loaded, loaded_layers)):
        adapt(model, its_layers, Adaptation(mode, rank=2), seed=0)
    state = read_state(full, layers)
    state.experts = {(i, e): t for (i, e), t in state.experts.items() if e in placement[i]}
    assert read_state(loaded, loaded_layers).experts.keys() == state.experts.keys()
    write_state(loaded, loaded_layers, state)
    for layer, experts in zip(layers, placement, strict=True):
        restrict_router(layer, experts)
    changes = [train(full, layers, placement), train(loaded, loaded_layers, placement)]
    assert max(float(change.abs().max()) for change in changes[0].values()) > 1e-4
    assert_close(changes[1], changes[0])


@pytest.mark.parametrize("family", ["Olmoe", "GptOss", "SwitchTransformers"])
def test_loaded_experts_are_quantised_like_those_of_the_whole_model(
    family: str, tmp_path: Path
) -> None:
    full = save(tmp_path, four_bit_families.build(family))
    layers = find_moe_layers(full)
    placement = placement_of(layers)
    loaded = load(tmp_path, full, placement, quantization="nf4")
    loaded_layers = find_moe_layers(loaded)
    quantise(full, "nf4")
    for layer, experts in zip(layers, placement, strict=True):
        restrict_router(layer, experts)
    assert torch.allclose(logits_of(loaded), logits_of(full), atol=1e-4)
    if loaded_layers[0].fused:
        weights = slots_of(loaded_layers[0]).weights
        assert isinstance(weights[1]["down_proj"], NF4Weight)
        assert weights[0] == {}
    adapt(loaded, loaded_layers, Adaptation("expert-lora", rank=2), seed=0)
    changes = train(loaded, loaded_layers, placement)
    experts = [float(c.abs().max()) for key, c in changes.items() if ".experts." in key]
    assert max(experts) > 0


def test_a_model_without_experts_measures_what_the_whole_one_does(tmp_path: Path) -> None:
    full = save(tmp_path, build("Olmoe"))
    empty = load(tmp_path, full, None)
    stats = []
    for model in (full, empty):
        layers = find_moe_layers(model)
        with all_experts(model, layers), RoutingRecorder(layers) as recorder, torch.no_grad():
            model(**batch(model))
        stats.append(recorder.stats())
    assert torch.equal(stats[0].count, stats[1].count)
    assert torch.allclose(stats[0].prob, stats[1].prob, atol=1e-6)
    assert stats[0].count[:, :].sum() > 0


def test_only_the_loaded_experts_have_memory(tmp_path: Path) -> None:
    for family in ("Olmoe", "SwitchTransformers"):
        full = save(tmp_path / family, build(family))
        layers = find_moe_layers(full)
        loaded = find_moe_layers(load(tmp_path / family, full, [[0, 1] for _ in layers]))
        for layer, whole in zip(loaded, layers, strict=True):
            distinct = {p.untyped_storage().data_ptr(): p for p in layer.expert_parameters()}
            size = sum(p.untyped_storage().nbytes() for p in distinct.values())
            of_all = sum(p.nbytes for p in whole.expert_parameters())
            assert size == pytest.approx(of_all * 2 / EXPERTS, rel=0.02)


def test_a_copy_in_16_bits(tmp_path: Path) -> None:
    full = save(tmp_path, build("Olmoe"))
    loaded = load_with_experts(
        AutoModelForCausalLM, str(tmp_path), full.config, torch.bfloat16, [[0, 1], [1, 2]]
    )
    dtypes = {p.dtype for layer in find_moe_layers(loaded) for p in layer.expert_parameters()}
    assert dtypes == {torch.bfloat16}
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mine, other = loaded.state_dict(), whole.state_dict()
    assert mine.keys() == other.keys()
    assert {n: t.dtype for n, t in mine.items()} == {n: t.dtype for n, t in other.items()}


def test_a_new_head_is_that_of_the_whole_model(tmp_path: Path) -> None:
    full = save(tmp_path, build("Qwen3Moe"))
    options: dict[str, Any] = dict(
        task="classification", num_labels=3, vocab_size=full.config.vocab_size, pad_token_id=0
    )
    spec = LoadSpec(str(tmp_path), **options, max_length=16)
    whole = load_model(spec)
    some = load_model(spec, loaded=[[0, 1], [2, 3]])
    assert torch.equal(some.get_parameter("score.weight"), whole.get_parameter("score.weight"))


@pytest.mark.parametrize("experts", [[0], [0, 0], []])
def test_fewer_experts_than_a_token_uses_are_refused(experts: list[int], tmp_path: Path) -> None:
    full = save(tmp_path, build("Olmoe"))
    with pytest.raises(PlacementError, match="a token uses 2"):
        load(tmp_path, full, [[0, 1], experts])
    with pytest.raises(IndexError, match=r"expert 9.*choose 0..3"):
        load(tmp_path, full, [[0, 1], [0, 9]])


@pytest.mark.parametrize("family", ["Olmoe", "GptOss", "SwitchTransformers"])
def test_missing_tensors_of_experts_are_named(family: str, tmp_path: Path) -> None:
    full = build(family)
    full.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    gone = (
        next(key for key in sorted(tensors) if "experts" in key and "down_proj" in key)
        if (family != "SwitchTransformers")
        else "decoder.block.1.layer.2.mlp.experts.expert_2.wo.weight"
    )
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="tensors of experts are missing") as error:
        load(tmp_path, full, [[0, 1]] * len(find_moe_layers(full)))
    named = gone if family != "SwitchTransformers" else "expert 2: wo.weight"
    assert named in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    full = save(tmp_path, build("Olmoe"))
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=rf"weight files are missing, such as {gone.name}"):
        load(tmp_path, full, [[0, 1], [0, 1]])


def test_experts_of_other_sizes_are_refused(tmp_path: Path) -> None:
    full = build("Olmoe")
    full.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = "model.layers.0.mlp.experts.1.down_proj.weight"
    tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"experts of \[32, 15\], its config says \[32, 16\]"):
        load(tmp_path, full, [[0, 1], [0, 1]])


def test_files_of_experts_know_their_sizes(tmp_path: Path) -> None:
    full = save(tmp_path, build("Olmoe"))
    files = expert_files(load(tmp_path, full, [[0, 1], [0, 1]]))
    assert files is not None
    assert sorted(files.shapes(0)) == [(32, 16), (32, 32)]
    assert expert_files(full) is None
    assert json.loads((tmp_path / "config.json").read_text())["num_experts"] == EXPERTS
