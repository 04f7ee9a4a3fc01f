"""Finding MoE layers in every family, reading and writing one expert, refusing the rest."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    JetMoeConfig,
    JetMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from fedmoe_app import ModelState, MoELayer, UnsupportedModelError, find_moe_layers
from fedmoe_app.moe.layers import passes, read_state, write_state

from .families import EXPERTS, FUSED, NAMES, batch, build

TENSORS = {
    "GptOss": ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"],
    "SwitchTransformers": ["wi.weight", "wo.weight"],
}
GATES = {"GptOss": ["weight", "bias"], "SwitchTransformers": ["classifier.weight"]}


@pytest.mark.parametrize("family", NAMES)
def test_finds_every_layer_with_its_router(family: str) -> None:
    layers = find_moe_layers(build(family))
    switch = family == "SwitchTransformers"

    assert len(layers) == (4 if switch else 2)  # the first layer of DeepSeek is dense
    assert [layer.index for layer in layers] == list(range(len(layers)))
    for layer in layers:
        assert layer.num_experts == EXPERTS
        assert layer.top_k == (1 if switch else 2)
        assert layer.fused is not switch
        assert layer.router_name.startswith(layer.name + ".")
        assert list(layer.expert(0)) == TENSORS.get(family, ["gate_up_proj", "down_proj"])
        assert list(layer.gate()) == GATES.get(family, ["weight"])
        assert layer.gate()[next(iter(layer.gate()))].shape == (EXPERTS, 32)


def test_decoder_layers_come_last_and_are_marked() -> None:
    layers = find_moe_layers(build("SwitchTransformers"))
    assert [layer.in_decoder for layer in layers] == [False, False, True, True]
    assert not any(layer.in_decoder for layer in find_moe_layers(build("Mixtral")))


@pytest.mark.parametrize("family", NAMES)
def test_writing_one_expert_changes_the_forward_only_through_it(family: str) -> None:
    model = build(family)
    layer = find_moe_layers(model)[0]
    others = [{k: v.clone() for k, v in layer.expert(e).items()} for e in (0, 1, 3)]
    used = experts_used(model, layer)
    outputs: list[torch.Tensor] = []
    handle = layer.experts_module.register_forward_hook(
        lambda module, args, output: outputs.append(output.reshape(-1, 32))
    )
    with torch.no_grad():
        model(**batch(model))
        layer.set_expert(2, {name: t * 1.5 for name, t in layer.expert(2).items()})
        model(**batch(model))
    handle.remove()

    changed = (outputs[0] - outputs[1]).abs().amax(dim=1) > 0
    assert changed.any() and not changed.all()
    assert torch.equal(changed, used[:, 2])
    for e, before in zip((0, 1, 3), others, strict=True):
        assert all(torch.equal(t, before[name]) for name, t in layer.expert(e).items())


def experts_used(model: torch.nn.Module, layer: MoELayer) -> torch.Tensor:
    """Return which experts each token of the batch goes through, [N, E] bool."""
    seen: list[torch.Tensor] = []
    handle = layer.experts_module.register_forward_pre_hook(
        lambda module, args: seen.append(args[1])
    )
    with torch.no_grad():
        model(**batch(model))
    handle.remove()
    chosen = seen[0]  # [N, K] indices, or Switch's [N, 1, E] one-hot
    if chosen.dim() == 3:
        return chosen[:, 0] > 0
    return torch.zeros(chosen.shape[0], EXPERTS).scatter(1, chosen, 1.0) > 0


@pytest.mark.parametrize("family", NAMES)
def test_state_covers_every_parameter_once_and_round_trips(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    state = read_state(model, layers)
    assert sum(t.numel() for _, t in state.named()) == sum(p.numel() for p in model.parameters())

    other = build(family, seed=1)
    write_state(other, find_moe_layers(other), state)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_tied_weights_appear_once() -> None:
    model = build("Qwen3Moe", tie_word_embeddings=True)
    dense = read_state(model, find_moe_layers(model)).dense
    assert "model.embed_tokens.weight" in dense
    assert "lm_head.weight" not in dense


def test_experts_absent_from_a_state_stay() -> None:
    model = build("Olmoe")
    layers = find_moe_layers(model)
    before = read_state(model, layers)
    ones = {name: torch.ones_like(t) for name, t in layers[1].expert(3).items()}
    write_state(model, layers, ModelState(experts={(1, 3): ones}))
    after = read_state(model, layers)
    changed = [key for key, t in after.named() if not torch.equal(t, dict(before.named())[key])]
    assert changed == ["layers.1.experts.3.gate_up_proj", "layers.1.experts.3.down_proj"]


def test_wrong_names_shapes_and_places_are_refused_before_anything_is_written() -> None:
    model = build("Mixtral")
    layers = find_moe_layers(model)
    expert = {name: t * 0 for name, t in layers[0].expert(0).items()}
    with pytest.raises(IndexError, match=r"expert 4: MoE layer 0 .* has 4 experts, choose 0..3"):
        layers[0].set_expert(4, expert)
    with pytest.raises(IndexError, match="expert -1"):
        layers[0].expert(-1)
    with pytest.raises(ValueError, match="expected down_proj, gate_up_proj"):
        layers[0].set_expert(0, {"down_proj": expert["down_proj"]})
    with pytest.raises(ValueError, match=r"down_proj has shape \(16, 32\), expected \(32, 16\)"):
        layers[0].set_expert(0, {**expert, "down_proj": expert["down_proj"].T})
    with pytest.raises(ValueError, match="gate of MoE layer 1: got tensors bias"):
        layers[1].set_gate({"bias": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"lm_tail\.weight: MixtralForCausalLM has no such"):
        write_state(model, layers, ModelState(dense={"lm_tail.weight": torch.zeros(1)}))
    with pytest.raises(IndexError, match="MoE layer 2: the model has 2"):
        write_state(model, layers, ModelState(gates={2: {"weight": torch.zeros(4, 32)}}))
    assert layers[0].expert(0)["gate_up_proj"].abs().sum() > 0


TINY = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
NLLB = {
    **{"vocab_size": 61, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_experts": 4},
    **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_sparse_step": 1},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_sparse_step": 1},
}
JET = TINY | {"intermediate_size": 16, "num_hidden_layers": 1, "kv_channels": 8}


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        (LlamaForCausalLM, LlamaConfig(**TINY, intermediate_size=48, num_hidden_layers=2),
         "LlamaForCausalLM has no Mixture-of-Experts"),
        (NllbMoeForConditionalGeneration, NllbMoeConfig(**NLLB), "only ever runs experts 0 and 1"),
        (JetMoeForCausalLM, JetMoeConfig(**JET, num_local_experts=4, num_experts_per_tok=2),
         "over several modules"),
    ],
)  # fmt: skip
def test_a_model_without_layers_that_can_be_used_is_refused(
    family: type[PreTrainedModel], config: PretrainedConfig, why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        find_moe_layers(family(config))


@pytest.mark.parametrize("family", FUSED[:1])
def test_layers_of_different_size_are_refused(family: str) -> None:
    model, small = build(family), build(family, num_local_experts=3)
    model.model.layers[1].mlp = small.model.layers[1].mlp
    with pytest.raises(UnsupportedModelError, match="have 3 and 4 experts"):
        find_moe_layers(model)


class Looped(torch.nn.Module):
    """A model that runs all its layers several times, as looped transformers do."""

    def __init__(self, inner: PreTrainedModel, times: int) -> None:
        super().__init__()
        self.inner, self.times = inner, times
        self.config, self.device = inner.config, inner.device

    def forward(self, **inputs: torch.Tensor) -> object:
        return [self.inner(**inputs) for _ in range(self.times)][-1]


@pytest.mark.parametrize("family", NAMES)
def test_how_often_a_layer_sees_a_token(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    model.train()
    assert passes(model, layers) == 1
    assert model.training
    assert passes(Looped(model, 3), layers) == 3  # type: ignore[arg-type]


def test_passes_of_a_model_that_wants_more_than_tokens() -> None:
    model = build("Mixtral")
    assert passes(Looped(model, 0), find_moe_layers(model)) == 1  # type: ignore[arg-type]
