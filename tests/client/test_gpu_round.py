"""Whole runs in one process on a CUDA device: the CPU's losses, and the same bits twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.tasks import setup
from tests.conftest import flat_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
SMALL = {
    "num-server-rounds": 1,
    "data.max-train-examples": 240,
    "data.max-test-examples": 64,
    "data.max-length": 24,
    "data.min-partition-size": 10,
}
LORA = {"model.train": "expert-lora", "model.quantization": "nf4"}
RUNS = {
    "fedavg": {"scheme": "fedavg"},
    "fedmoe": {"scheme": "fedmoe"},
    "fedalign": {"scheme": "fedalign"},
    "four bits": LORA,
    "bfloat16": LORA | {"model.dtype": "bfloat16", "train.gradient-checkpointing": True},
}


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(flat_config(**SMALL | {"output-dir": str(folder)} | overrides), 3)


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]


@pytest.mark.parametrize("name", RUNS)
def test_a_round_has_the_losses_of_the_cpu_and_the_same_bits_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, again = run(tmp_path / "gpu", **RUNS[name]), run(tmp_path / "again", **RUNS[name])
    assert without_times(gpu) == without_times(again)
    model, other = (load_file(folder / "model" / "model.safetensors") for folder in (gpu, again))
    assert all(torch.equal(tensor, other[key]) for key, tensor in model.items())

    monkeypatch.setattr(setup, "device", lambda choice="auto": torch.device("cpu"))
    cpu = run(tmp_path / "cpu", **RUNS[name])
    near = 1e-2 if name == "bfloat16" else 1e-4
    for found, wanted in zip(read_metrics(gpu), read_metrics(cpu), strict=True):
        assert not found.get("failures")
        assert found["loss"] == pytest.approx(wanted["loss"], rel=near)
