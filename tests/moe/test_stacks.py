"""Experts trained as stacks: what a GPU runs, made to run on the CPU, against one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app import ModelState, find_moe_layers
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.rows import RowsAdamW
from fedmoe_app.moe.training.stacks import ExpertStacks
from fedmoe_app.moe.training.trainable import Trainables

from .families import EXPERTS, batch
from .four_bit_families import build
from .test_grouped import adapted

# GptOss has biases and transposed weights, Qwen2Moe a shared expert.
FAMILY = pytest.mark.parametrize("family", ["Olmoe", "GptOss", "Qwen2Moe"])
CHOSEN = pytest.mark.parametrize("chosen", [None, [0, 2], [3], []])
LORA = pytest.mark.parametrize("train", ["experts", "expert-lora"])


def prepared(family: str, train: str) -> PreTrainedModel:
    if train == "expert-lora":
        return adapted(family, "none")
    model = build(family)
    adapt(model, find_moe_layers(model), Adaptation("experts", head=False), seed=1)
    return model


def trained(
    model: PreTrainedModel, chosen: Sequence[int] | None, *, stacked: bool, steps: int = 3
) -> tuple[ModelState, Tensor, float]:
    """Changes, trained steps of each expert and the loss afterwards."""
    layers = find_moe_layers(model)
    experts = None if chosen is None else [chosen] * len(layers)
    with Trainables(model, layers, experts, stacked=stacked) as trainables:
        assert bool(trainables.stacks()) == (stacked and chosen != [])
        with RoutingRecorder(layers) as recorder:
            optimiser = RowsAdamW(
                trainables.plain(), trainables.stacks(), lr=1e-2, weight_decay=0.1
            )
            for step in range(steps):
                inputs = batch(model)
                rows = inputs["input_ids"].shape[0]  # not every step reaches every expert
                inputs = {name: t[step % rows : step % rows + 1] for name, t in inputs.items()}
                recorder.mask(inputs["attention_mask"], None)
                optimiser.zero_grad(set_to_none=True)
                model(**inputs).loss.backward()
                trainables.count_step(recorder.take_routed())
                torch.nn.utils.clip_grad_norm_(trainables.leaves(), 1.0)
                optimiser.step()
        changes = trainables.changes()
        with torch.no_grad():
            loss = float(model(**batch(model)).loss)
        trainables.merge()
        return changes, trainables.trained, loss


@FAMILY
@LORA
@CHOSEN
def test_training_moves_what_it_moves_one_by_one(
    family: str, train: str, chosen: Sequence[int] | None
) -> None:
    wanted, counts, loss = trained(prepared(family, train), chosen, stacked=False)
    found, same_counts, near = trained(prepared(family, train), chosen, stacked=True)
    assert same_counts.equal(counts)
    assert near == pytest.approx(loss, rel=1e-4)
    changes = dict(found.named())
    assert list(changes) == [key for key, _ in wanted.named()]
    for key, change in wanted.named():
        # AdamW's first steps are the sign of a gradient, which may be next to 0.
        assert (changes[key] - change).norm() <= 0.02 * change.norm() + 1e-6, key


@LORA
def test_the_local_model_is_the_same_after_it_is_merged(train: str) -> None:
    model = prepared("Olmoe", train)
    layers = find_moe_layers(model)
    before = dict(read_state(model, layers).named())
    changes, _, loss = trained(model, [1, 2], stacked=True)
    after = dict(read_state(model, layers).named())
    moved = dict(changes.named())
    for key, value in after.items():
        assert torch.allclose(value - before[key], moved.get(key, torch.zeros(())), atol=1e-6), key
    with torch.no_grad():
        assert float(model(**batch(model)).loss) == pytest.approx(loss, rel=1e-5)


@LORA
def test_the_optimiser_gets_four_tensors_a_layer_at_most(train: str) -> None:
    model = prepared("Olmoe", train)
    layers = find_moe_layers(model)
    with Trainables(model, layers, stacked=True) as trainables:
        for stacks in trainables.stacks():
            assert len(stacks.trained) <= 4
            assert all(p.shape[0] == EXPERTS for p in stacks.trained.values())


def test_a_row_is_stepped_as_a_parameter_of_its_own() -> None:
    """Three rows that are reached in other steps, against PyTorch's AdamW on each alone."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, 4, generator=generator)
    stacks = ExpertStacks([{"down_proj": row} for row in start], [0, 1, 2])
    own = [torch.nn.Parameter(row.clone()) for row in start]
    options = {"lr": 0.1, "weight_decay": 0.3}
    rows, single = RowsAdamW([], [stacks], **options), torch.optim.AdamW(own, **options)
    for reached in ([1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]):
        gradient = torch.randn(3, 2, 4, generator=generator)
        stacks.trained["down_proj"].grad = gradient.clone()
        stacks.keep_reached(torch.tensor(reached, dtype=torch.bool))
        for row, parameter in enumerate(own):
            parameter.grad = gradient[row] if reached[row] else None
        rows.step()
        single.step()
        assert torch.allclose(stacks.trained["down_proj"], torch.stack(list(own)), atol=1e-6)
    untouched = [i for i, row in enumerate(start) if torch.equal(row, own[i])]
    assert untouched == []


def test_a_row_that_is_not_reached_keeps_its_bits_whatever_its_gradient_holds() -> None:
    stacks = ExpertStacks(
        [{"down_proj": torch.ones(2, 2)}, {"down_proj": torch.ones(2, 2)}], [0, 1]
    )
    optimiser = RowsAdamW([], [stacks], lr=0.1, weight_decay=0.3)
    stacks.trained["down_proj"].grad = torch.stack(
        [torch.full((2, 2), torch.nan), torch.ones(2, 2)]
    )
    reached = stacks.keep_reached(torch.tensor([False, True]))
    optimiser.step()
    assert reached.tolist() == [False, True]
    assert torch.equal(stacks.trained["down_proj"][0], torch.ones(2, 2))
    assert bool((stacks.trained["down_proj"][1] < 1).all())


@LORA
def test_gradients_agree_under_checkpointing(train: str) -> None:
    found = []
    for reentrant in (None, False, True):
        model = prepared("GptOss", train).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with Trainables(model, find_moe_layers(model), [[0, 1]] * 2, stacked=True) as trainables:
            model(**batch(model)).loss.backward()
            found.append([p.grad for layer in trainables.stacks() for p in layer.trained.values()])
    for plain, *others in zip(*found, strict=True):
        assert plain is not None
        assert all(torch.allclose(plain, other, atol=1e-5) for other in others)


def test_a_term_of_the_loss_reaches_the_stacks_by_their_names() -> None:
    model = prepared("Olmoe", "experts")
    with Trainables(model, find_moe_layers(model), [[1, 3]] * 2, stacked=True) as trainables:
        value = trainables.named_parameters()["layers.1.experts.3.down_proj"]
        assert torch.equal(value, trainables.reference()["layers.1.experts.3.down_proj"])
        (2 * value).sum().backward()
        gradient = trainables.stacks()[1].trained["down_proj"].grad
    assert gradient is not None
    assert gradient[0].eq(0).all() and gradient[1].eq(2).all()


def test_freezing_in_a_batch_is_refused() -> None:
    model = prepared("Olmoe", "experts")
    with (
        Trainables(model, find_moe_layers(model), stacked=True) as trainables,
        pytest.raises(RuntimeError, match="parameters of their own"),
    ):
        trainables.train_only(0, torch.ones(EXPERTS, dtype=torch.bool))
