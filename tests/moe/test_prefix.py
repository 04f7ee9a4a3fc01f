"""A model that runs from the hidden states of its frozen layers on is the same model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import find_moe_layers
from fedmoe_app.moe.prefix.find import NoPrefixError, Prefix, find_prefix
from fedmoe_app.moe.prefix.replay import check, replayed
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from tests.moe.families import build

ROOM = 2**20
ROWS = ([1, 7, 9, 12, 2], [1, 30, 2], [1, 5, 6, 7, 8, 9, 2])


def carved(train: str = "experts", **overrides: Any) -> PreTrainedModel:
    """Four layers, of which the last has experts."""
    values: dict[str, Any] = dict(num_hidden_layers=4, mlp_only_layers=[0, 1, 2], seed=1)
    model = build("Qwen2Moe", **values | overrides)
    adapt(model, find_moe_layers(model), Adaptation(train, rank=2), seed=0)
    return model


def prefix_of(model: PreTrainedModel) -> Prefix:
    return find_prefix(model, find_moe_layers(model))


def padded(rows: Any, length: int | None = None) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    ids = nn.functional.pad(ids, (0, (length or ids.shape[1]) - ids.shape[1]))
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_it_ends_below_the_first_trained_layer() -> None:
    prefix = prefix_of(carved())
    assert (prefix.length, len(prefix.layers)) == (3, 4)
    assert prefix.saved == 3 / (3 + 3 * 1)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: carved("all"), "outside its layers, is trained"),
        (lambda: carved(mlp_only_layers=[]), "first layer is trained or has experts"),
        (lambda: carved(attention_dropout=0.1), "random"),
        (lambda: build("SwitchTransformers"), "encoder-decoder"),
    ],
)
def test_a_model_without_one_is_told_why(model: Any, why: str) -> None:
    with pytest.raises(NoPrefixError, match=why):
        prefix_of(model())


def test_a_frozen_moe_layer_ends_it() -> None:
    """Its routing is recorded in every round."""
    model = carved(mlp_only_layers=[0, 1])
    model.base_model.layers[2].requires_grad_(False)
    assert prefix_of(model).length == 2


def test_one_sequence_has_the_same_bits_with_and_without() -> None:
    model = carved()
    batches = [padded([row]) for row in ROWS]
    plain = [model(**batch).logits for batch in batches]
    states = HiddenStates(ROOM)
    with replayed(prefix_of(model), states):
        first = [model(**batch).logits for batch in batches]
        again = [model(**batch).logits for batch in batches]
    assert len(states) == len(ROWS)
    for one, two, three in zip(plain, first, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert torch.equal(model(**batches[0]).logits, plain[0])  # afterwards it is as before


def test_gradients_have_the_same_bits() -> None:
    grads = []
    for cached in (False, True):
        model = carved()
        ids = padded([ROWS[0]])
        states = HiddenStates(ROOM)
        if cached:
            with replayed(prefix_of(model), states):
                model(**ids)  # fills it
                model(**ids, labels=ids["input_ids"]).loss.backward()
        else:
            model(**ids, labels=ids["input_ids"]).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() != set()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_hidden_states_do_not_depend_on_the_batch() -> None:
    """Neither on its other rows, nor on the padding, nor on the order in which they were asked."""
    model, found = carved(), []
    for batches in ([padded(ROWS)], [padded(ROWS[::-1], 11)], [padded([row]) for row in ROWS]):
        states = HiddenStates(ROOM)
        with replayed(prefix_of(model), states):
            for batch in batches:
                model(**batch)
        found.append([states.get(row) for row in ROWS])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_padded_batch_is_close_to_the_plain_one() -> None:
    model, batch = carved(), padded(ROWS, 9)
    plain = model(**batch).logits
    with replayed(prefix_of(model), HiddenStates(ROOM)):
        cached = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(cached[real], plain[real], rtol=1e-4, atol=1e-5)


def test_frozen_layers_run_once_a_sequence() -> None:
    model, runs = carved(), []
    prefix = prefix_of(model)
    prefix.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))  # type: ignore[union-attr]
    with replayed(prefix, HiddenStates(ROOM)):
        for _ in range(3):
            model(**padded(ROWS))
    assert len(runs) == len(ROWS)


def test_without_room_they_are_computed_again_to_the_same_bits() -> None:
    model, batch = carved(), padded(ROWS)
    with replayed(prefix_of(model), HiddenStates(ROOM)):
        kept = model(**batch).logits
    states = HiddenStates(limit=0)
    with replayed(prefix_of(model), states):
        model(**batch)
        assert torch.equal(model(**batch).logits, kept)
    assert (len(states), states.size) == (0, 0)


def test_a_copy_of_the_model_reads_the_same_hidden_states() -> None:
    """As the personal copy of PFL-MoE does, which trains layers of its own."""
    model, states = carved(), HiddenStates(ROOM)
    with replayed(prefix_of(model), states):
        model(**padded(ROWS))
        own = copy.deepcopy(model)
        with torch.no_grad():
            own.base_model.layers[3].self_attn.o_proj.weight.mul_(2)
        different = own(**padded([ROWS[0]])).logits
        same = model(**padded([ROWS[0]])).logits
    assert len(states) == len(ROWS)
    assert not torch.equal(different, same)
    assert torch.equal(model(**padded([ROWS[0]])).logits, same)


def test_generation_and_left_padding_run_through_all_layers() -> None:
    model, batch = carved(), padded([ROWS[0]])
    left = {
        "input_ids": torch.tensor([[0, 1, 7, 2]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1]]),
    }
    states = HiddenStates(ROOM)
    options: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, use_cache=True)
    plain, plain_left = model.generate(**batch, **options), model(**left).logits
    with replayed(prefix_of(model), states):
        assert torch.equal(model.generate(**batch, **options), plain)
        assert torch.equal(model(**left).logits, plain_left)
    assert len(states) == 0


def test_a_failed_forward_leaves_nothing_behind() -> None:
    model, states = carved(), HiddenStates(ROOM)
    plain = model(**padded([ROWS[0]])).logits

    def fail(*_: Any) -> None:
        raise RuntimeError("full")

    with replayed(prefix_of(model), states):
        handle = model.base_model.layers[3].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="full"):
            model(**padded([ROWS[1]]))
        handle.remove()
        assert torch.equal(model(**padded([ROWS[0]])).logits, plain)
    assert torch.equal(model(**padded([ROWS[0]])).logits, plain)


@pytest.mark.parametrize("family", ["Qwen2Moe", "DeepseekV3", "GptOss"])
def test_the_trial_passes_plain_lists_of_layers(family: str) -> None:
    model = build(family, num_hidden_layers=3)
    prefix = Prefix(model.base_model, list(model.base_model.layers), 2)
    check(prefix, 61)


def test_the_trial_refuses_layers_that_hand_on_more_than_hidden_states() -> None:
    model = carved()
    prefix, kept = prefix_of(model), {}
    prefix.layers[1].register_forward_hook(lambda m, a, out: kept.update(seen=out * 3))

    def add(module: nn.Module, args: Any) -> Any:
        return (args[0] + kept["seen"], *args[1:])

    prefix.layers[3].register_forward_pre_hook(add)
    with pytest.raises(NoPrefixError, match="see more"):
        check(prefix, 61)


def test_pieces_come_back_from_a_file() -> None:
    states, other = HiddenStates(ROOM), HiddenStates(ROOM)
    states.put([1, 2], torch.ones(2, 3))
    states.put([1, 2], torch.zeros(2, 3))  # it is there
    states.put([4], torch.full((1, 3), 2.0))
    piece = states.take_new()
    assert states.take_new() == {}
    assert {name: list(tensor.shape) for name, tensor in piece.items()} == {
        "keys": [2, 16],
        "lengths": [2],
        "hidden": [3, 3],
    }
    other.add_piece(piece)
    assert other.size == states.size == 3 * 3 * 4
    for ids in ([1, 2], [4]):
        found, expected = other.get(ids), states.get(ids)
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)
    assert other.get([2, 1]) is None
    assert other.take_new() == {}
