"""What a simulated node asks of the machine, before Ray is asked."""

from __future__ import annotations

import os

import pytest
import torch

from fedmoe_app import ConfigError
from fedmoe_app.launch.resources import check_cpus, check_gpus


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs, one GPU."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_node_gets_a_cpu_a_thread_unless_told() -> None:
    assert check_cpus(None, 2) == 2
    assert check_cpus(4, 2) == 4


@pytest.mark.parametrize(
    ("cpus", "threads", "message"),
    [
        (1, 2, r"--cpus 1: .*train\.threads = 2 threads; give at least as many"),
        (5, 1, r"--cpus 5: this machine has 4 CPUs.*at most 4"),
        (None, 8, r"train\.threads = 8: this machine has 4 CPUs"),
    ],
)
def test_cpus_that_do_not_fit(cpus: int | None, threads: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cpus(cpus, threads)


@pytest.mark.parametrize("gpus", [0.0, 0.25, 1.0])
def test_a_share_of_a_gpu(gpus: float) -> None:
    assert check_gpus(gpus) == gpus


@pytest.mark.parametrize(("gpus", "message"), [(1.5, "whole number"), (2.0, "finds 1 CUDA")])
def test_gpus_that_there_are_not(gpus: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_gpus(gpus)


def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"--gpus 0\.5: PyTorch finds no CUDA device.*leave"):
        check_gpus(0.5)
