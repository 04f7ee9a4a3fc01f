"""Selection per batch: experts are frozen between a layer's router and its experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from transformers import PreTrainedModel

from fedmoe_app import find_moe_layers
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.state import expert_name
from fedmoe_app.moe.training.trainable import Trainables

from .families import EXPERTS, NAMES, batch, build, real_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
Choose = Callable[[int, Tensor], list[bool]]  # (layer, counts [E]) -> which experts train


def keep_even(layer: int, counts: Tensor) -> list[bool]:
    return [e % 2 == 0 for e in range(EXPERTS)]


def most_used(layer: int, counts: Tensor) -> list[bool]:
    return [e == int(counts.argmax()) for e in range(EXPERTS)]


def fresh(family: str) -> PreTrainedModel:
    """The same model every time, also in the vectors that :func:`build` leaves to chance."""
    torch.manual_seed(0)
    return build(family)


def run(
    model: PreTrainedModel,
    choose: Choose | None,
    steps: int = 1,
    drop: Choose | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Train; ``choose`` freezes before the experts run, ``drop`` drops gradients afterwards.

    Returns the changes by key, and ``trained``.
    """
    layers = find_moe_layers(model)
    counts: dict[int, Tensor] = {}
    with Trainables(model, layers) as trainables:

        def on_route(layer: int, probs: Tensor, chosen: Tensor) -> None:
            counts[layer] = torch.bincount(chosen.reshape(-1), minlength=EXPERTS)
            if choose is not None:
                trainables.train_only(layer, torch.tensor(choose(layer, counts[layer])))

        parameters = trainables.named_parameters()
        # Not Adam, which would make a change of its own out of a gradient's rounding error.
        optimizer = SGD(parameters.values(), lr=0.1, momentum=0.9, weight_decay=0.1)
        with RoutingRecorder(layers, on_route=on_route) as recorder:
            for step in range(steps):
                inputs = batch(model, seed=step)
                recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
                optimizer.zero_grad(set_to_none=True)
                model(**inputs).loss.backward()
                if drop is not None:
                    drop_gradients(parameters, counts, drop)
                trainables.count_step()
                optimizer.step()
        changes = {key: t.clone() for key, t in trainables.changes().named()}
        return changes, trainables.trained.clone()


def drop_gradients(parameters: dict[str, Tensor], counts: dict[int, Tensor], drop: Choose) -> None:
    for layer, routed in counts.items():
        for e, wanted in enumerate(drop(layer, routed)):
            for key, parameter in parameters.items():
                if not wanted and key.startswith(expert_name(layer, e, "")):
                    parameter.grad = None


@pytest.mark.parametrize("family", NAMES)
def test_a_selected_batch_is_a_full_one_whose_other_gradients_are_dropped(family: str) -> None:
    """So the input gradient of a frozen expert still flows to the router and the layers below."""
    for choose in (keep_even, most_used):
        frozen, trained = run(fresh(family), choose, steps=3)
        dropped, counted = run(fresh(family), None, steps=3, drop=choose)
        assert torch.equal(trained, counted)
        assert frozen.keys() == dropped.keys()
        for key, change in frozen.items():
            torch.testing.assert_close(change, dropped[key], atol=1e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("family", NAMES)
def test_a_frozen_expert_has_no_gradient_and_does_not_move(family: str) -> None:
    changes, trained = run(fresh(family), keep_even, steps=2)
    assert trained[:, 0::2].sum() > 0
    assert trained[:, 1::2].sum() == 0
    for e in (1, 3):
        assert not [key for key in changes if f".experts.{e}." in key]


@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_an_expert_frozen_in_a_later_batch_is_not_moved_by_momentum_or_decay(family: str) -> None:
    model = fresh(family)
    layers = find_moe_layers(model)
    with Trainables(model, layers) as trainables:
        parameters = trainables.named_parameters()
        optimizer = AdamW(parameters.values(), lr=1e-2, weight_decay=0.5)
        snapshots = []
        for wanted in (True, False, True):
            for layer in range(len(layers)):
                trainables.train_only(layer, torch.full((EXPERTS,), wanted))
            optimizer.zero_grad(set_to_none=True)
            model(**batch(model)).loss.backward()
            trainables.count_step()
            optimizer.step()
            experts = {k: p.detach().clone() for k, p in parameters.items() if ".experts." in k}
            snapshots.append(experts)
        first, second, third = snapshots
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(second[key], third[key]) for key in first)
        assert trainables.trained.max() == 2  # not in the second step


@pytest.mark.parametrize("family", NAMES)
def test_the_router_is_heard_before_its_experts_and_without_padding(family: str) -> None:
    model = fresh(family)
    layers = find_moe_layers(model)
    order: list[tuple[str, int]] = []
    shapes = []

    def on_route(layer: int, probs: Tensor, chosen: Tensor) -> None:
        order.append(("route", layer))
        shapes.append((tuple(probs.shape), tuple(chosen.shape)))
        assert not probs.requires_grad
        torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(probs)))

    hooks = [
        layer.experts_module.register_forward_pre_hook(
            lambda module, args, index=layer.index: order.append(("experts", index))
        )
        for layer in layers
    ]
    inputs = batch(model)
    with RoutingRecorder(layers, on_route=on_route) as recorder:
        recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
        model(**inputs)
        told = {index: real_tokens(layer) for index, layer in enumerate(layers)}
    for hook in hooks:
        hook.remove()
    model(**inputs)  # nobody listens any more
    assert order == [(what, i) for i in range(len(layers)) for what in ("route", "experts")]
    top_k = layers[0].top_k
    assert shapes == [((told[i], EXPERTS), (told[i], top_k)) for i in range(len(layers))]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_checkpointing_selects_the_same(family: str, reentrant: bool) -> None:
    plain, trained = run(fresh(family).train(), keep_even, steps=2)
    model = fresh(family).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, counted = run(model, keep_even, steps=2)
    assert torch.equal(trained, counted)
    assert plain.keys() == again.keys()
    for key, change in plain.items():
        torch.testing.assert_close(change, again[key], atol=1e-6, rtol=1e-4, msg=key)


def test_experts_that_the_round_left_out_stay_frozen() -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    with Trainables(model, layers, [[0, 1]] * len(layers)) as trainables:
        trainables.train_only(0, torch.tensor([False, True, True, True]))
        model(**batch(model)).loss.backward()
        trainables.count_step()
        assert trainables.trained[0, [0, 2, 3]].tolist() == [0, 0, 0]
        assert trainables.trained[1, [2, 3]].tolist() == [0, 0]
