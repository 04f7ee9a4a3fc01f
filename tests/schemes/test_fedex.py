"""FedEx-LoRA: the mean of products is exact, the base stays, the residual does not go up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fedmoe_app import (
    Block,
    ConfigError,
    ModelShape,
    ModelState,
    Reply,
    Run,
    find_moe_layers,
    make_scheme,
    read_metrics,
)
from fedmoe_app.aggregation.streaming import BlockSums
from fedmoe_app.moe.layers import UnsupportedModelError, read_state, write_state
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.schemes.fedexlora import ExactMean
from tests.conftest import make_config
from tests.invariant.runs import Config, GoldenRun
from tests.moe.families import batch, build
from tests.schemes.conftest import SharedRuns
from tests.toy import plan_of, toy_stats

EXPERT = Block("expert", (0, 0))
A, B, R = "w.lora_A", "w.lora_B", "w.lora_R"
LORA: Config = {"model.train": "expert-lora", "num-server-rounds": 2, "model.lora-rank": 2}


def reply(client: int, n: float, change: dict[str, Tensor] | None) -> Reply:
    changes = ModelState(experts={} if change is None else {(0, 0): change})
    return Reply(client, n, 1.0, toy_stats([]), changes)


def combined(*replies: Reply) -> dict[str, Tensor]:
    sums, rule = BlockSums(), ExactMean()
    sums.add([rule.add(one, EXPERT) for one in replies])
    return dict(rule.result(sums.named(), EXPERT))


def test_the_residual_by_hand() -> None:
    """Two clients of weight ¼ and ¾: ¼·1·4 + ¾·2·0 − (¼·1 + ¾·2)·(¼·4 + ¾·0)."""
    one = {A: torch.tensor([[4.0]]), B: torch.tensor([[1.0]]), R: torch.zeros(1, 1)}
    other = {A: torch.tensor([[0.0]]), B: torch.tensor([[2.0]]), R: torch.zeros(1, 1)}
    found = combined(reply(0, 1.0, one), reply(1, 3.0, other))
    assert [float(found[name]) for name in (A, B, R)] == [1.0, 1.75, 1.0 - 1.75]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 2))
def test_the_next_map_is_the_mean_of_the_clients_maps(seed: int, trained: int, absent: int) -> None:
    """Clients that did not train the expert count with the map that they received."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    a, b, r = draw(2, 5), draw(3, 2), draw(3, 5)
    changes = [{A: draw(2, 5), B: draw(3, 2)} for _ in range(trained)]
    n = [float(i + 1) for i in range(trained + absent)]
    replies = [reply(i, n[i], changes[i] if i < trained else None) for i in range(len(n))]
    products = [(b + d[B]) @ (a + d[A]) for d in changes] + [b @ a] * absent
    wanted = r + sum(w * p for w, p in zip(n, products, strict=True)) / sum(n)
    found = combined(*replies)
    next_map = r + found[R] + (b + found[B]) @ (a + found[A])
    torch.testing.assert_close(next_map.float(), wanted.float(), rtol=1e-5, atol=1e-5)


def test_the_same_b_at_all_clients_leaves_no_residual() -> None:
    """As under RoLoRA: one half is the same everywhere."""
    changes = [{A: torch.full((2, 3), float(i)), B: torch.zeros(3, 2)} for i in range(3)]
    found = combined(*(reply(i, 1.0, change) for i, change in enumerate(changes)))
    assert not found[R].any()
    assert found[A].eq(1.0).all()


# -- in the model ------------------------------------------------------------------------------


def test_a_residual_is_in_the_outputs_and_in_the_merged_model() -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    adapt(model, layers, Adaptation("expert-lora", head=False, rank=2, residual=True), seed=1)
    state = read_state(model, layers)
    residuals = [name for name, _ in state.named() if name.endswith(".lora_R")]
    assert len(residuals) == 2 * sum(layer.num_experts for layer in layers)
    with torch.no_grad():
        before = model(**batch(model)).logits
        moved = ModelState(
            state.dense,
            state.gates,
            {
                key: {n: t + 0.1 if n.endswith("lora_R") else t for n, t in tensors.items()}
                for key, tensors in state.experts.items()
            },
        )
        write_state(model, layers, moved)
        after = model(**batch(model)).logits
        assert not torch.allclose(after, before, atol=1e-3)
        merge_adapters(model, layers)
        torch.testing.assert_close(model(**batch(model)).logits, after, rtol=1e-3, atol=1e-4)


def test_experts_that_peft_adapts_have_no_place_for_it() -> None:
    model = build("SwitchTransformers")
    with pytest.raises(UnsupportedModelError, match="no place for a residual"):
        adapt(model, find_moe_layers(model), Adaptation("expert-lora", residual=True), seed=1)


# -- in a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(runs: SharedRuns) -> dict[str, Path]:
    return {
        scheme: runs.of(GoldenRun({"scheme": scheme, "keep-client-state": True} | LORA))
        for scheme in ("fedavg", "fedexlora")
    }


def newest(results: Path) -> Path:
    return max((results / "checkpoints").iterdir())


def header(results: Path) -> Any:
    return json.loads((newest(results) / "checkpoint.json").read_bytes())["identity"]


def test_the_residual_moves_and_the_base_keeps_its_fingerprint(finished: dict[str, Path]) -> None:
    state = load_file(newest(finished["fedexlora"]) / "state.safetensors")
    residuals = [tensor for name, tensor in state.items() if name.endswith(".lora_R")]
    assert any(tensor.any() for tensor in residuals)
    of_base = [key for key in header(finished["fedavg"]) if "base" in key]
    assert of_base
    for key in of_base:
        assert header(finished["fedexlora"])[key] == header(finished["fedavg"])[key]


def test_nothing_of_it_goes_up_and_all_of_it_down(finished: dict[str, Path]) -> None:
    fedavg, fedex = (read_metrics(finished[name]) for name in ("fedavg", "fedexlora"))
    assert [line["status"] for line in fedex] == ["ok"] * 3
    assert fedex[1]["bytes_up"] == fedavg[1]["bytes_up"]
    assert fedex[2]["bytes_down"] > fedavg[2]["bytes_down"]


def test_the_clients_train_the_same_in_the_first_round(finished: dict[str, Path]) -> None:
    fedavg, fedex = (read_metrics(finished[name])[1]["clients"] for name in ("fedavg", "fedexlora"))
    assert [c["train_loss"] for c in fedavg] == [c["train_loss"] for c in fedex]


def test_an_adapter_folder_cannot_hold_it(finished: dict[str, Path]) -> None:
    assert (finished["fedavg"] / "adapter").is_dir()
    assert not (finished["fedexlora"] / "adapter").exists()
    assert (finished["fedexlora"] / "model").is_dir()


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"model.train": "expert-lora", "model.attention-lora": True}]
)
def test_other_adapters_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="residual is one of the experts' adapters"):
        make_scheme(make_config(scheme="fedexlora", **given))


def test_buffered_rounds_are_refused() -> None:
    scheme = make_scheme(make_config(scheme="fedexlora", **{"model.train": "expert-lora"}))
    with pytest.raises(ConfigError, match="start from the same adapters"):
        plan_of(scheme).check(Run(ModelShape(1, 2, 1), buffered=True))
