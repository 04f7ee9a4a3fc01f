"""A model's layers on several cards: which goes where, and what is put on the modules for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformers import PreTrainedModel

from fedmoe_app import ConfigError
from fedmoe_app.moe import loading
from fedmoe_app.moe.layers import find_moe_layers
from fedmoe_app.moe.loading import LoadSpec, empty_model, load_model
from fedmoe_app.moe.prefix.find import Prefix
from fedmoe_app.moe.prefix.replay import replayed
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.moe.quantised.quantisers import quantised_parameters
from fedmoe_app.moe.spread import at_home, connect, is_spread, place, spread
from tests.cards import CARDS, two_cards

MIB = 2**20


def spec(**fields: Any) -> LoadSpec:
    return LoadSpec("qwen3moe-small", "causal-lm", 1000, **fields)


def size_of(model: PreTrainedModel, name: str) -> int:
    return sum(p.nbytes for p in model.get_submodule(name).parameters())


def layers_on(found: dict[str, int], model: PreTrainedModel) -> list[set[int]]:
    """Return on which cards the parameters of each layer are."""

    def card(name: str) -> int:
        return next(c for path, c in found.items() if f"{name}.".startswith(f"{path}.") or not path)

    return [
        {card(f"model.layers.{i}.{name}") for name, _ in layer.named_parameters()}
        for i, layer in enumerate(model.model.layers)
    ]


def test_whole_layers_are_dealt_out_in_order() -> None:
    model = empty_model(spec())  # 13.9 MB, 3.3 a layer
    found = spread(model, {0: 100 * MIB, 1: 100 * MIB})
    assert layers_on(found, model) == [{0}, {0}, {1}, {1}]
    assert found["model.embed_tokens"] == 0


def test_a_card_gets_no_more_than_nine_tenths_of_what_is_free() -> None:
    model = empty_model(spec())
    found = spread(model, {0: 9 * MIB, 1: 20 * MIB})  # all on the first would be 13.3 MiB
    on_first = sum(size_of(model, name) for name, card in found.items() if card == 0)
    assert 0 < on_first <= 0.9 * 9 * MIB
    assert layers_on(found, model)[0] == {0}
    assert layers_on(found, model)[3] == {1}


def test_weights_that_do_not_fit_are_refused_with_both_sizes() -> None:
    model = empty_model(spec())
    with pytest.raises(ConfigError, match=r"0\.0 GiB of weights.*2 cards with 0\.0 GiB free, 90%"):
        spread(model, {0: 5 * MIB, 1: 5 * MIB})


def test_quantised_weights_count_as_packed() -> None:
    """What does not fit in float32 does in four bits."""
    model = empty_model(spec())
    memory = {0: 3 * MIB, 1: 3 * MIB}
    with pytest.raises(ConfigError):
        spread(model, memory)
    packed = quantised_parameters(model, "nf4")
    assert layers_on(spread(model, memory, packed, "nf4"), model)[3] == {1}
    experts = model.get_submodule("model.layers.0.mlp.experts")
    own = {f"model.layers.0.mlp.experts.{name}" for name, _ in experts.named_parameters()}
    assert own <= packed
    assert "model.layers.0.self_attn.q_proj.weight" in packed
    assert not {"model.layers.0.mlp.gate.weight", "lm_head.weight"} & packed


def spread_by_hand() -> PreTrainedModel:
    model = load_model(spec())
    names = ["embed_tokens", *(f"layers.{i}" for i in range(4)), "norm", "rotary_emb"]
    places = dict(zip(names, (0, 0, 1, 0, 1, 1, 0), strict=True))
    place(model, {f"model.{n}": CARDS[i] for n, i in places.items()} | {"lm_head": CARDS[1]})
    return model


@torch.no_grad()
def test_it_computes_what_one_device_does_and_returns_it_home() -> None:
    tokens = torch.tensor([[1, 5, 9, 2], [4, 4, 0, 7]])
    wanted = load_model(spec())(input_ids=tokens)
    with two_cards():
        model = spread_by_hand()
        assert is_spread(model)
        home = torch.device(CARDS[0])
        assert model.device == home
        out = model(input_ids=tokens.to(home), use_cache=True)
        assert out.logits.device == home
        assert out.logits.cpu().equal(wanted.logits)
        hidden = model.base_model(input_ids=tokens.to(home)).last_hidden_state
        assert hidden.device == home
        layers = find_moe_layers(model)
        assert [str(next(x.router.parameters()).device) for x in layers] == [
            CARDS[i] for i in (0, 1, 0, 1)
        ]
        written = model.generate(input_ids=tokens.to(home), max_new_tokens=3, do_sample=False)
        assert written.device == home


def test_tensors_of_several_cards_are_added_up_at_home() -> None:
    plain = load_model(spec())
    own = dict(plain.named_parameters())
    assert at_home(plain, own) is own
    with two_cards():
        model = spread_by_hand()
        seen = at_home(model, dict(model.named_parameters()))
        total = sum(((p**2).sum() for p in seen.values()), torch.zeros((), device=CARDS[0]))
        assert total.device == torch.device(CARDS[0])
        total.backward()
        for p in model.parameters():
            assert p.grad is not None
            assert p.grad.device == p.device


def test_replaying_a_prefix_leaves_the_hooks_of_its_layers() -> None:
    tokens = torch.tensor([[1, 5, 9, 2]])
    with two_cards(), torch.no_grad():
        model = spread_by_hand()
        tokens = tokens.to(model.device)
        layers = list(model.model.layers)
        before = model(input_ids=tokens).logits
        states = HiddenStates(limit=MIB)
        with replayed(Prefix(model.model, layers, 2), states):
            model(input_ids=tokens)
            assert len(states) == 1
            assert model(input_ids=tokens).logits.cpu().equal(before.cpu())
        assert model(input_ids=tokens).logits.cpu().equal(before.cpu())


def test_a_layer_without_hooks_keeps_the_forward_of_its_class() -> None:
    model = load_model(spec())
    layers: list[nn.Module] = list(model.model.layers)
    with replayed(Prefix(model.model, layers, 1), HiddenStates(limit=MIB)):
        assert "forward" in vars(layers[0])
    assert "forward" not in vars(layers[0])


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_checkpoint_is_read_by_the_map(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one device by several names, since there is no other here that it could be read to."""
    load_model(spec()).save_pretrained(tmp_path)
    own = replace(spec(quantization=quantization), name=str(tmp_path))
    tokens = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        wanted = load_model(own)(input_ids=tokens).logits
        seen: list[set[str]] = []

        def by_name(model: PreTrainedModel, cards: Any, *quantised: Any) -> dict[str, str]:
            seen.append(set(quantised[0]) if quantised else set())
            names = ["embed_tokens", *(f"layers.{i}" for i in range(4)), "norm", "rotary_emb"]
            return {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}

        monkeypatch.setattr(loading, "spread", by_name)
        model = load_model(own, cards={0: MIB, 1: MIB})
        assert model(input_ids=tokens).logits.equal(wanted)
    assert bool(seen[0]) == (quantization != "none")
    hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    assert {"model.layers.0", "model.layers.3", "lm_head", "model", ""} <= hooked
    assert not any(".mlp" in name for name in hooked)


def test_what_accelerate_put_on_a_model_goes() -> None:
    """It hides the forward of every module, also of those whose class changes afterwards."""
    model = load_model(spec())
    places = {"model": "cpu", "lm_head": "cpu"}
    dispatch_model(model, places, force_hooks=True)
    assert "forward" in vars(model.model.layers[0].self_attn.q_proj)
    connect(model, places)
    hooked = {name for name, module in model.named_modules() if "forward" in vars(module)}
    assert hooked == {"", "model", "lm_head"}
    assert "to" not in vars(model)
