"""From dense to MoE in memory: what must be equal, and what must only be near."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PreTrainedModel, Qwen3Config

from fedmoe_app import find_moe_layers
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.carve.convert import Batch, carve
from fedmoe_app.moe.carve.plan import Plan, check_family, moe_config, sizes_of
from fedmoe_app.moe.carve.split import SHARED, Layout
from tests.moe.carve.dense import NAMES, NEURONS, build_dense
from tests.moe.families import VOCAB

SPLIT = Plan(layers=2, experts=4, top_k=2, shared=16)
COPY = Plan(method="copy", layers=2, experts=4, top_k=2)


def batches(count: int = 2, length: int = 9) -> list[Batch]:
    """Batches of random texts, the last row of each one token shorter."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(4, VOCAB, (4, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@torch.no_grad()
def difference(a: PreTrainedModel, b: PreTrainedModel) -> float:
    """Largest difference of a logit of a real token, relative to the largest logit."""
    worst = 0.0
    for batch in batches():
        real = batch["attention_mask"].bool()
        first, second = a(**batch).logits[real], b(**batch).logits[real]
        worst = max(worst, float((first - second).abs().max() / first.abs().max()))
    return worst


def reloaded(made: PreTrainedModel, folder: Any) -> PreTrainedModel:
    made.save_pretrained(folder)
    return type(made).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_outputs_of_the_dense_model(name: str, tmp_path: Any) -> None:
    dense = build_dense(name)
    made = reloaded(carve(dense, COPY).model, tmp_path)
    layers = find_moe_layers(made)
    assert [(layer.num_experts, layer.top_k) for layer in layers] == [(4, 2), (4, 2)]
    assert layers[0].name == "model.layers.1.mlp"
    assert difference(dense, made) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_split_whose_experts_are_all_used_alike_is_the_dense_model(
    name: str, tmp_path: Any
) -> None:
    # A router of zeros weighs all experts by 1/E, and with k = E all are chosen.
    shared = 0 if name == "qwen3" else 16
    plan = Plan(layers=0, experts=4, top_k=4, shared=shared, refit=False, router_scale=0.0)
    dense = build_dense(name)
    carved = carve(dense, plan, batches())
    assert len(carved.reports) == 3
    assert all(report.error < 1e-5 for report in carved.reports)
    assert all(load == pytest.approx(1.0) for r in carved.reports for load in r.load)
    assert difference(dense, reloaded(carved.model, tmp_path)) < 1e-5


def test_every_neuron_is_in_one_expert() -> None:
    dense = build_dense("llama")
    for layout in carve(dense, SPLIT, batches()).layouts:
        parts = [layout.neurons(e) for e in (SHARED, 0, 1, 2, 3)]
        assert [len(part) for part in parts] == [16, 8, 8, 8, 8]
        assert sorted(torch.cat(parts).tolist()) == list(range(NEURONS))


def test_the_report_says_what_the_layer_of_the_model_does() -> None:
    """Its error is recomputed from the model itself: the block's output against the dense one's."""
    dense = build_dense("qwen2")
    carved = carve(dense, SPLIT, batches())
    caught: list[Any] = []
    layer = carved.model.model.layers[2]
    # The streams go through float32 twice, once layer by layer: not the same bits.
    model = reload_in_memory(carved.model)
    model.model.layers[2].mlp.register_forward_hook(lambda _, i, o: caught.append((i[0], o)))
    errors = []
    with torch.no_grad():
        for batch in batches():
            model(**batch)
            x, out = caught.pop()
            wanted = dense.model.layers[2].mlp(x)
            real = batch["attention_mask"].bool()
            ratio = (out - wanted).norm(dim=-1) / wanted.norm(dim=-1)
            errors.append(ratio[real])
    assert layer is not None
    assert float(torch.cat(errors).mean()) == pytest.approx(carved.reports[1].error, rel=1e-3)


def reload_in_memory(made: PreTrainedModel) -> PreTrainedModel:
    model = type(made)(made.config).eval()
    model.load_state_dict(made.state_dict())
    return model


def test_the_refit_lowers_the_error_on_calibration_tokens() -> None:
    dense = build_dense("llama")
    many = batches(4)  # 140 tokens, more than two a neuron
    plain = carve(dense, Plan(layers=1, experts=4, shared=16, refit=False), many)
    refit = carve(dense, Plan(layers=1, experts=4, shared=16), many)
    assert refit.reports[0].error < plain.reports[0].error
    few = batches(1)  # 35 tokens for 48 neurons: nothing is refitted
    a = carve(dense, Plan(layers=1, experts=4, shared=16), few).model.state_dict()
    b = carve(dense, Plan(layers=1, experts=4, shared=16, refit=False), few).model.state_dict()
    key = "model.layers.2.mlp.experts.down_proj"
    assert torch.equal(a[key], b[key])


def test_known_layouts_need_no_texts_and_change_only_order_and_factor() -> None:
    dense = build_dense("llama")
    label = torch.tensor([SHARED] * 16 + [0, 1, 2, 3] * 8)
    layouts = [Layout(label, torch.randn(4, 32)) for _ in range(2)]
    state = carve(dense, SPLIT, layouts=layouts).model.state_dict()
    down = dense.model.layers[1].mlp.down_proj.weight
    mlp = "model.layers.1.mlp"
    assert torch.equal(state[f"{mlp}.gate.weight"], layouts[0].router)
    assert torch.equal(state[f"{mlp}.experts.down_proj"][1], 2 * down[:, 17::4])
    assert torch.equal(state[f"{mlp}.shared_expert.down_proj.weight"], 2 * down[:, :16])


def test_a_seed_fixes_all_bits_and_the_dense_model_stays() -> None:
    dense = build_dense("llama")
    before = {key: tensor.clone() for key, tensor in dense.state_dict().items()}
    states = [
        carve(dense, Plan(layers=2, experts=4, shared=16, seed=seed), batches()).model.state_dict()
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert all(torch.equal(before[key], tensor) for key, tensor in dense.state_dict().items())


def test_the_default_shared_expert_has_two_thirds_in_multiples_of_64() -> None:
    smollm = LlamaConfig(intermediate_size=1536, num_hidden_layers=30)
    assert sizes_of(Plan(), smollm).shared == 1024
    assert sizes_of(Plan(), smollm).width == 64
    qwen = build_dense("qwen2", intermediate_size=50).config
    assert sizes_of(Plan(layers=1, experts=4), qwen).shared == 34  # 4 experts of 4
    assert sizes_of(Plan(), Qwen3Config(intermediate_size=1536)).shared == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(method="halve"), "--method halve: unknown; choose one of split, copy"),
        (Plan(layers=4), "--layers 4: give it a value from 0 to 3"),
        (Plan(layers=1, experts=1), "--experts 1: give it a value from 2 to 48"),
        (Plan(layers=1, experts=4, top_k=5), "--top-k 5: give it a value from 1 to 4"),
        (Plan(layers=1, shared=18), "the 30 that are left do not divide by --experts 8; near"),
        (Plan(layers=1, shared=18), "values that fit: 16, 24"),
        (Plan(layers=1, shared=48), "--shared 48"),
        (Plan(layers=1, method="copy", shared=8), '--shared 8: method "copy" has no shared'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sizes_of(plan, build_dense("llama").config)
    assert message in str(caught.value)


def test_what_has_no_sibling_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"phi3 has no .*; choose a model of one of llama, mis"):
        check_family("my-model", Phi3Config())
    with pytest.raises(ConfigError, match="attention_bias = true, and qwen2_moe has no such"):
        check_family("my-model", LlamaConfig(attention_bias=True))
    with pytest.raises(ConfigError, match="mixes full and sliding attention"):
        mixed = Qwen3Config(use_sliding_window=True, num_hidden_layers=3, max_window_layers=1)
        check_family("my-model", mixed)
    with pytest.raises(ConfigError, match="qwen3_moe has no shared expert; give it 0"):
        sizes_of(Plan(layers=1, shared=16), build_dense("qwen3").config)


def test_only_the_last_layers_are_moe() -> None:
    config = moe_config(build_dense("llama").config, SPLIT)
    assert config.mlp_only_layers == [0]
    assert not config.qkv_bias
    assert moe_config(build_dense("qwen2").config, SPLIT).qkv_bias
