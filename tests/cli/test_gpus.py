"""What the doctor says of GPUs, with a driver that is made up; the real one where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedmoe_app.cli import doctor, gpus
from fedmoe_app.cli.doctor import OK, WARNING, Finding
from fedmoe_app.cli.gpus import Card, Driver, read_driver, why_unused

CARD = Card("GPU-1", "H100", 60_000_000_000, 80_000_000_000, 2)
DRIVER = Driver("550.54", (12, 4), (CARD,))


class FakeNvml:
    """NVML's functions, for one card."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 12040,
            "nvmlSystemGetDriverVersion": lambda: "550.54",
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                free=CARD.free, total=CARD.total
            ),
            "nvmlDeviceGetUUID": lambda handle: "GPU-1",
            "nvmlDeviceGetName": lambda handle: "H100",
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [1, 2],
        }[name]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch that has a device."""
    properties = SimpleNamespace(uuid="1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100 MIG")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1_000_000_000, 2_000_000_000))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    yield


def test_the_driver_is_asked_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    assert read_driver() == DRIVER
    assert nvml.open == 0


def test_without_a_driver_or_the_package_there_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))  # type: ignore[arg-type]
    assert read_driver() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_driver() is None


@pytest.mark.parametrize(
    ("built_for", "visible", "found", "remedy"),
    [
        (None, None, "H100, but torch is a build for CPUs", "install one for CUDA 12"),
        ("13.0", None, "built for CUDA 13.0, the driver runs up to 12.4", "update the driver"),
        ("12.8", "", "H100, hidden by CUDA_VISIBLE_DEVICES=''", "unset that variable"),
        ("12.8", None, "H100, but torch finds none", "torch.cuda.init()"),
    ],
)
def test_why_torch_does_not_use_a_card(
    built_for: str | None, visible: str | None, found: str, remedy: str
) -> None:
    said = why_unused(DRIVER, built_for, visible)
    assert found in said[0]
    assert remedy in said[1]


def findings() -> list[Finding]:
    return list(doctor._gpu())


@pytest.mark.usefixtures("one_gpu")
def test_a_usable_card_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_driver", lambda: DRIVER)
    (card,) = findings()
    assert (card.what, card.state, card.remedy) == ("GPU 0", OK, "")
    assert card.found == (
        "H100, 60.0 GB of 80.0 GB free, 2 programs on it; driver 550.54 for CUDA up to 12.4, "
        "torch for 12.8"
    )


@pytest.mark.usefixtures("one_gpu")
def test_torch_is_asked_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_driver", lambda: None)
    monkeypatch.setattr(doctor, "has_nvml", lambda: False)
    (card,) = findings()
    assert (card.state, card.found) == (OK, "H100 MIG, 1.00 GB of 2.00 GB free")
    assert "fedmoe[gpu]" in card.remedy


@pytest.mark.usefixtures("one_gpu")
def test_a_part_of_a_card_is_torchs_to_describe(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Driver("550.54", (12, 4), (Card("GPU-2", "H100", 1, 2, 0),))
    monkeypatch.setattr(doctor, "read_driver", lambda: other)
    monkeypatch.setattr(doctor, "has_nvml", lambda: True)
    assert findings() == [Finding("GPU 0", OK, "H100 MIG, 1.00 GB of 2.00 GB free")]


def test_cards_that_torch_cannot_use_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "read_driver", lambda: DRIVER)
    (card,) = findings()
    assert (card.what, card.state) == ("GPU", WARNING)
    assert card.found == "H100, but torch is a build for CPUs"


@pytest.mark.gpu
def test_the_real_driver_knows_torchs_device() -> None:
    if not gpus.has_nvml():
        pytest.skip("nvidia-ml-py is not installed")
    driver = read_driver()
    assert driver is not None
    assert torch.cuda.get_device_name(0) in [card.name for card in driver.cards]
    assert "driver " in findings()[0].found
