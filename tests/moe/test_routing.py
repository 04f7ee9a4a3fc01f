"""The routing histogram against numbers worked out by hand and by loops over tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app import MoELayer, RoutingStats, find_moe_layers
from fedmoe_app.moe.routing import RoutingRecorder, read_router

from .families import EXPERTS, NAMES, batch, build, real_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")


class FixedRouter(nn.Module):
    """Returns the logits that it is given, as the decorated families do."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, indices = logits.softmax(-1).topk(2, -1)
        return logits, weights, indices


def fixed_layer() -> MoELayer:
    return MoELayer(0, "moe", FixedRouter(), "moe.gate", nn.Module(), 3, 2, False, True, 0)


def log(*probs: float) -> list[float]:
    return [math.log(p) for p in probs]


def test_hand_computed_histogram() -> None:
    layer = fixed_layer()
    with RoutingRecorder([layer], regions=True) as recorder:
        recorder.mask(torch.tensor([[1, 1, 0]]))
        layer.router(torch.tensor([log(0.5, 0.3, 0.2), log(0.1, 0.7, 0.2), log(0.1, 0.1, 0.8)]))
    stats = recorder.stats(torch.tensor([[4, 5, 6]]))

    assert stats.tokens.tolist() == [2]
    assert stats.count.tolist() == [[1, 2, 1]]  # top-2: {0, 1} and {1, 2}
    assert stats.trained.tolist() == [[4, 5, 6]]
    assert torch.allclose(stats.prob, torch.tensor([[0.3, 0.5, 0.2]]))
    assert torch.allclose(stats.margin, torch.tensor([[0.1, 0.25, 0.0]]))  # 0.2 / 2, 0.5 / 2
    assert torch.allclose(stats.peak, torch.tensor([[0.5, 0.7, 0.2]]))
    kl = [
        (0.5 * math.log(0.5 / 0.3) + 0.1 * math.log(0.1 / 0.3)) / 2,
        (0.3 * math.log(0.3 / 0.5) + 0.7 * math.log(0.7 / 0.5)) / 2,
        0.0,
    ]
    assert torch.allclose(stats.kl, torch.tensor([kl]), atol=1e-6)
    assert torch.allclose(stats.share(), torch.tensor([[0.25, 0.5, 0.25]]))
    assert stats.region is not None
    expected = torch.tensor([[log(0.5, 0.3, 0.2), log(0.1, 0.7, 0.2), [0.0, 0.0, 0.0]]])
    assert torch.allclose(stats.region, expected)


def inputs_of(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> list[tuple[Tensor, Tensor]]:
    """Run the batch; return each router's input [N, D] and the experts' choice [N, K]."""
    hidden: list[Tensor] = []
    choices: list[Tensor] = []
    hooks = []
    for layer in layers:
        hooks += [
            layer.router.register_forward_pre_hook(
                lambda m, args: hidden.append(args[0].reshape(-1, args[0].shape[-1]))
            ),
            layer.experts_module.register_forward_pre_hook(lambda m, args: choices.append(args[1])),
        ]
    with torch.no_grad():
        model(**batch(model))
    for hook in hooks:
        hook.remove()
    choices = [c[:, 0].argmax(-1, keepdim=True) if c.dim() == 3 else c for c in choices]
    return list(zip(hidden, choices, strict=True))


def by_loops(layer: MoELayer, hidden: Tensor, chosen: Tensor, mask: Tensor) -> dict[str, Any]:
    """Compute the histogram of one layer token by token."""
    logits = F.linear(hidden, *layer.router.parameters())
    real = [t for t in range(len(hidden)) if mask.reshape(-1)[t]]
    p = logits.detach().double().softmax(-1)
    out: dict[str, Any] = {k: [0.0] * EXPERTS for k in ("count", "prob", "margin", "peak", "kl")}
    for e in range(EXPERTS):
        out["count"][e] = sum(e in chosen[t].tolist() for t in real)
        out["prob"][e] = sum(float(p[t, e]) for t in real) / len(real)
        out["peak"][e] = max(float(p[t, e]) for t in real)
        for t in real:
            rest = max(float(p[t, o]) for o in range(EXPERTS) if o != e)
            out["margin"][e] += max(0.0, float(p[t, e]) - rest) / len(real)
            ratio = float(p[t, e]) / out["prob"][e]
            out["kl"][e] += float(p[t, e]) * math.log(ratio) / len(real)
    return out


def record(model: PreTrainedModel, times: int = 1, **options: bool) -> RoutingStats:
    layers = find_moe_layers(model)
    inputs = batch(model)
    with RoutingRecorder(layers, **options) as recorder:
        for _ in range(times):
            recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
            model(**inputs)
    return recorder.stats()


@pytest.mark.parametrize("family", NAMES)
def test_histogram_equals_a_count_by_hand(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    stats = record(model, regions=True)
    assert stats.tokens.tolist() == [real_tokens(layer) for layer in layers]
    inputs = batch(model)
    for layer, (hidden, chosen) in zip(layers, inputs_of(model, layers), strict=True):
        mask = inputs["decoder_attention_mask" if layer.in_decoder else "attention_mask"]
        expected = by_loops(layer, hidden, chosen, mask)
        for name, values in expected.items():
            found = getattr(stats, name)[layer.index].double()
            assert torch.allclose(found, torch.tensor(values).double(), atol=1e-5), name
    assert stats.region is not None and stats.region.shape == (len(layers), EXPERTS, 32)


def test_batches_add_up() -> None:
    model = build("Qwen3Moe")
    once, thrice = record(model), record(model, times=3)
    assert torch.equal(thrice.count, 3 * once.count)
    assert torch.equal(thrice.tokens, 3 * once.tokens)
    assert torch.allclose(thrice.prob, once.prob)
    assert torch.allclose(thrice.kl, once.kl, atol=1e-7)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    model = build(family).train()
    inputs = batch(model)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with RoutingRecorder(find_moe_layers(model)) as recorder:
            recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
            model(**inputs).loss.backward()
        results.append(recorder.stats())
    assert torch.equal(results[0].count, results[1].count)
    assert torch.equal(results[0].tokens, results[1].tokens)
    assert torch.allclose(results[0].prob, results[1].prob, atol=1e-6)


def test_switch_counts_tokens_beyond_an_experts_capacity() -> None:
    counts = [record(build("SwitchTransformers", expert_capacity=c)).count for c in (64, 1)]
    assert torch.equal(counts[0][0], counts[1][0])
    assert counts[1].sum(dim=1).tolist() == [14, 14, 10, 10]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_probs_carry_the_gradient_to_the_router(checkpointing: bool) -> None:
    model = build("Qwen3Moe").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = find_moe_layers(model)
    inputs = batch(model)
    with RoutingRecorder(layers, keep_probs=True) as recorder:
        recorder.mask(inputs["attention_mask"])
        model(**inputs)
        probs = recorder.probs
        assert [p.shape for p in probs] == [(14, EXPERTS)] * 2
        assert torch.allclose(probs[0].sum(-1), torch.ones(14))
        probs[1][:, 0].mean().backward()
    assert layers[1].router.weight.grad.abs().sum() > 0
    assert layers[0].router.weight.grad.abs().sum() > 0


def test_probs_without_gradient_or_without_a_forward_are_refused() -> None:
    model = build("Qwen3Moe").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with RoutingRecorder(find_moe_layers(model), keep_probs=True) as recorder:
        with pytest.raises(RuntimeError, match="keep_probs=True and a forward"):
            _ = recorder.probs
        model(**batch(model))
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            _ = recorder.probs


def test_a_stale_mask_is_refused() -> None:
    layer = fixed_layer()
    with RoutingRecorder([layer]) as recorder:
        recorder.mask(torch.ones(1, 5))
        with pytest.raises(ValueError, match="mask has 5 entries, but the router .* saw 3 tokens"):
            layer.router(torch.zeros(3, 3))


def test_masked_experts_and_empty_batches_give_finite_numbers() -> None:
    layer = fixed_layer()
    with RoutingRecorder([layer]) as recorder:
        recorder.mask(torch.zeros(1, 2))
        layer.router(torch.zeros(2, 3))
        assert recorder.stats().prob.tolist() == [[0.0, 0.0, 0.0]]
        recorder.mask(None)
        layer.router(torch.tensor([[0.0, 0.0, -math.inf]]))
    stats = recorder.stats()
    assert stats.prob.tolist() == [[0.5, 0.5, 0.0]]
    assert stats.kl.tolist() == [[0.0, 0.0, 0.0]]
    assert stats.share().tolist() == [[0.5, 0.5, 0.0]]


def test_logits_are_taken_from_where_transformers_records_them() -> None:
    scores, logits = torch.rand(5, 3), torch.randn(5, 3)  # Llama4's router returns both, so
    layer = replace(fixed_layer(), logits_index=1)
    found, chosen = read_router(layer, (scores, logits))
    assert found.data_ptr() == logits.data_ptr()
    assert torch.equal(chosen, logits.topk(2).indices)
    assert read_router(fixed_layer(), (scores, logits))[0].data_ptr() == scores.data_ptr()
    with pytest.raises(RuntimeError, match=r"moe.gate: its output holds no \[.., 3\]"):
        read_router(layer, torch.rand(5, 4))


def test_hooks_go_and_reset_forgets() -> None:
    layer = fixed_layer()
    with RoutingRecorder([layer]) as recorder:
        layer.router(torch.zeros(2, 3))
        recorder.reset()
        layer.router(torch.zeros(1, 3))
    layer.router(torch.zeros(4, 3))
    assert recorder.stats().tokens.tolist() == [1]
