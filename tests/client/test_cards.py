"""A client whose frozen base lies on two cards, made up: the round that one device gives, bit by
bit, and no tensor that meets one of the other card."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from fedmoe_app import ClientUpdate, ConfigError, RunConfig
from fedmoe_app.client import cards as client_cards
from fedmoe_app.client import round as client_round
from fedmoe_app.client.round import evaluate_client, train_client
from fedmoe_app.config.node import Node
from fedmoe_app.moe import loading
from fedmoe_app.moe.layers import find_moe_layers, read_state
from fedmoe_app.moe.spread import is_spread
from fedmoe_app.tasks.setup import Setup, load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.cards import CARDS, two_cards
from tests.conftest import make_config
from tests.homes import home_with_cache

NODE = Node(0, 0, 2, None, device_map="auto")


def halves(
    model: PreTrainedModel, memory: Mapping[int, int], packed: Collection[str] = (), kind: str = ""
) -> dict[str, str]:
    """Put embeddings and every second layer on the first card, the rest, heads too, on the other.

    A layer goes to the card that the one before is not on: each hand-over is tried.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{above}.") for above in found):
            continue
        if type(module).__name__ in model._no_split_modules:
            found[name] = CARDS[int(name.rpartition(".")[2]) % 2]
        elif not any(module.children()):
            embeddings = isinstance(module, torch.nn.Embedding)
            found[name] = CARDS[0 if embeddings else 1]
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what takes long to make: it is in the usual cache."""
    return home_with_cache(tmp_path_factory.mktemp("home"))


@pytest.fixture
def on_cards(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Setup]:
    """Have the two cards for nodes with a device map; return what was loaded on them."""
    monkeypatch.setattr(loading, "spread", halves)
    monkeypatch.setattr(client_cards, "free_memory", lambda: {0: 2**30, 1: 2**30})
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    loaded: list[Setup] = []

    def noted(*args: Any, **options: Any) -> Setup:
        setup = load_setup(*args, **options)
        loaded.append(setup)
        return setup

    monkeypatch.setattr(client_round, "load_setup", noted)
    return loaded


def short(folder: Path, **overrides: Any) -> RunConfig:
    """Return the config of a run on forty short texts of two classes."""
    rows = [{"text": f"word {i % 7} stands before {i}", "label": "ab"[i % 2]} for i in range(40)]
    source = folder / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = {"data.source": str(source), "data.label-field": "label", "data.max-length": 16}
    return make_config(**own, **{"model.train": "expert-lora", "train.max-steps": 2, **overrides})


def task_of(config: RunConfig) -> TrainTask:
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    return TrainTask(
        1,
        read_state(setup.model, setup.layers),
        data.label_names,
        data.fingerprint,
        base_fingerprint=setup.base_fingerprint,
    )


def same(config: RunConfig, loaded: list[Setup]) -> ClientUpdate:
    """Train on one device and on two cards; the updates must be the same."""
    task = task_of(config)
    wanted = train_client(config, Node(0, 0, 2, None), task)
    with two_cards():
        update = train_client(config, NODE, task)
    assert [is_spread(setup.model) for setup in loaded] == [False, True]
    assert {str(p.device) for p in loaded[1].model.parameters()} == set(CARDS)
    changes, others = dict(update.changes.named()), dict(wanted.changes.named())
    assert list(changes) == list(others)
    assert any(bool(change.any()) for change in changes.values())
    for key, change in others.items():
        assert changes[key].device.type == "cpu"
        assert changes[key].equal(change), key
    for name in ("count", "prob", "margin", "peak", "kl", "trained", "tokens"):
        assert getattr(update.routing, name).equal(getattr(wanted.routing, name)), name
    for name, number in wanted.statistics.items():
        assert update.statistics[name].equal(number), name
    assert update.metrics == wanted.metrics
    return update


CASES: dict[str, dict[str, Any]] = {
    "adapters": {},
    "adapters, attention too": {"model.attention-lora": True},
    "full experts": {"model.train": "experts"},
    "activations computed again": {"train.gradient-checkpointing": True},
    "terms of the weights": {"scheme": "fedprox"},
    "terms of the routers": {"scheme": "fedalign", "model.train": "experts"},
    "experts chosen once": {"scheme": "fedmoe"},
    "experts chosen in batches": {"scheme": "hfedmoe"},
    "sums of inputs": {"scheme": "grammerge"},
    "a personal copy": {"scheme": "pflmoe"},
    "a teacher": {"scheme": "fedntd"},
    "features": {"scheme": "feddecorr"},
    "a head in closed form": {"head.closed-form": "before"},
    "label words": {"model.head": "label-words"},
    "an encoder and a decoder": {"model.name": "switch-tiny", "model.head": "label-words"},
    "micro-batches": {"train.gradient-accumulation-steps": 2},
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_two_cards_train_what_one_device_does(
    overrides: dict[str, Any], on_cards: list[Setup], tmp_path: Path
) -> None:
    same(short(tmp_path, **overrides), on_cards)


def test_stacks_lie_with_their_layers(
    on_cards: list[Setup], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on cards, which are trained so."""
    monkeypatch.setattr(client_round, "pays_on", lambda device: True)
    update = same(short(tmp_path), on_cards)
    assert bool((update.routing.trained > 0).any(dim=1).all())
    layers = find_moe_layers(on_cards[1].model)
    devices = [{str(p.device) for own in layer.adapters for p in own.values()} for layer in layers]
    assert devices == [{CARDS[0]}, {CARDS[1]}]


@pytest.mark.parametrize(
    ("overrides", "cards", "message"),
    [
        ({}, 2, 'with model.train = "all" there is none; choose "experts" or "expert-lora"'),
        (
            {"scheme": "fedmoe", "model.train": "experts", "model.experts-in-memory": "chosen"},
            2,
            'model.experts-in-memory = "chosen" this node loads some experts only',
        ),
        ({"model.train": "experts"}, 1, "this process sees 1 GPUs, and dividing takes at least 2"),
        ({"model.train": "experts"}, 0, "this process sees 0 GPUs"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_both_ways_out(
    overrides: dict[str, Any], cards: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_cards, "free_memory", lambda: dict.fromkeys(range(cards), 2**30))
    with pytest.raises(ConfigError) as error:
        client_cards.cards_of(NODE, make_config(**overrides))
    assert str(error.value).startswith('node config device-map = "auto": ')
    assert message in str(error.value)
    assert "leave device-map out" in str(error.value)


def test_a_node_without_a_device_map_asks_no_card() -> None:
    assert client_cards.cards_of(Node(0, 0, 2, None), make_config()) is None


def test_a_score_comes_from_two_cards_too(on_cards: list[Setup], tmp_path: Path) -> None:
    config = short(tmp_path, **{"model.train": "experts"})
    task = task_of(config)
    wanted = evaluate_client(config, Node(0, 0, 2, None), task)
    with two_cards():
        assert evaluate_client(config, NODE, task) == wanted
