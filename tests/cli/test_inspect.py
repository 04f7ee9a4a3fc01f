import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import MixtralConfig, OlmoeConfig

from fedmoe_app import ModelState, parse_run_config
from fedmoe_app.cli.inspect import inspect_model, print_outline, update_shapes
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.loading import ModelNotFoundError
from fedmoe_app.tasks.setup import load_setup
from fedmoe_app.wire.codecs import CODEC_NAMES, make_codec
from fedmoe_app.wire.packing import expected_packed, pack_changes
from tests.conftest import flat_config

LABELS = tuple("abcdefgh")


@pytest.mark.parametrize("train", ["all", "experts", "expert-lora"])
def test_counts_are_those_of_the_real_model(train: str) -> None:
    config = parse_run_config(
        flat_config(**{"model.train": train, "data.label-names": ",".join(LABELS)})
    )
    found = inspect_model(config)
    real = load_setup(config, LABELS)
    adapters = sum(p.numel() for name, p in real.model.named_parameters() if "lora_" in name)
    assert found.total == sum(p.numel() for p in real.model.parameters()) - adapters
    # 2 layers of 8 experts: gate and up [2·128, 64], down [64, 128]
    assert found.experts == 2 * 8 * 3 * 128 * 64
    assert found.gates == 2 * 8 * 64
    assert found.active == found.total - 2 * 6 * 3 * 128 * 64
    sent = sum(tensor.numel() for _, tensor in read_state(real.model, real.layers).named())
    shapes = update_shapes(found.trained, budget=8)
    assert sum(math.prod(shape) for shape in shapes.values()) == sent
    assert expected_packed(make_codec("fp32"), shapes) == 4 * sent


def test_half_of_the_experts_cost_half_of_their_bytes() -> None:
    found = inspect_model(parse_run_config(flat_config(**{"data.label-names": ",".join(LABELS)})))
    whole, half = (
        expected_packed(make_codec("fp32"), update_shapes(found.trained, budget))
        for budget in (8, 4)
    )
    assert whole - half == 4 * found.experts / 2


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("share", [0.002, 0.05, 0.4])
def test_sizes_are_those_of_encoded_updates(name: str, share: float) -> None:
    flat = {"model.train": "expert-lora", "data.label-names": ",".join(LABELS)}
    found = inspect_model(parse_run_config(flat_config(**flat)))
    generator = torch.Generator().manual_seed(0)
    changes = ModelState()
    for key, tensor in found.trained.named():
        changes.insert(key, torch.randn(tensor.shape, generator=generator))
    codec = make_codec(name, share)
    encoded = sum(len(part) for part in pack_changes(changes, codec, [1]).values())
    told = expected_packed(codec, update_shapes(found.trained, budget=8))
    assert told == pytest.approx(encoded, rel=0.01 if name.startswith("topk") else 0)


def test_a_seven_billion_model_is_counted_without_memory(tmp_path: Path) -> None:
    config: Any = OlmoeConfig(intermediate_size=1024, vocab_size=50304)  # OLMoE-1B-7B
    config.save_pretrained(tmp_path)
    changes = {
        "model.name": str(tmp_path),
        "model.train": "expert-lora",
        "model.dtype": "bfloat16",
        "data.task": "causal-lm",
        "data.partition": "iid",
    }
    parsed = parse_run_config(flat_config(**changes))
    found = inspect_model(parsed)
    # 16 layers, 64 experts: 3·2048·1024 each
    assert found.experts == 16 * 64 * 3 * 2048 * 1024
    assert 6.8e9 < found.total < 7.0e9
    assert 1.2e9 < found.active < 1.4e9
    console = Console(record=True, width=100)
    print_outline(parsed, found, console)
    text = console.export_text()
    assert "6.92 B parameters" in text
    assert "13.8 GB" in text
    assert "8 of 64" in text


def test_listed_and_stacked_experts_are_named(tmp_path: Path) -> None:
    MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        vocab_size=64,
    ).save_pretrained(tmp_path)
    for name, stored in [(str(tmp_path), "stacked"), ("switch-tiny", "one by one")]:
        flat = flat_config(
            **{"model.name": name, "data.task": "causal-lm", "data.partition": "iid"}
        )
        console = Console(record=True, width=100)
        config = parse_run_config(flat)
        print_outline(config, inspect_model(config), console)
        assert stored in console.export_text()


def test_the_path_of_a_model_is_no_markup_and_stays_in_one_piece(tmp_path: Path) -> None:
    folder = tmp_path / "a rather long name of a folder [/closed] $x$" / "[moe] x"
    OlmoeConfig(num_hidden_layers=1).save_pretrained(folder)
    changes = {"model.name": str(folder), "data.task": "causal-lm", "data.partition": "iid"}
    config = parse_run_config(flat_config(**changes))
    console = Console(file=io.StringIO(), width=60)
    print_outline(config, inspect_model(config), console)
    assert console.file.getvalue().startswith(f"{folder}: olmoe")  # type: ignore[attr-defined]


def test_a_name_that_leads_nowhere() -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        inspect_model(parse_run_config(flat_config(**{"model.name": "nowhere"})))
