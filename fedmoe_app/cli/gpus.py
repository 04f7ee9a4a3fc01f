"""The GPUs of this machine as NVIDIA's driver sees them, for ``fedmoe doctor``.

NVML tells the driver's version, and finds cards that a CPU build of torch, or one that is too new
for the driver, cannot use. Unlike torch it does not take memory of the card to ask. Its package
comes with the extra ``gpu`` and may be missing; then torch alone is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

EXTRA = "fedmoe[gpu]"


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        uuid: NVIDIA's name for it, ``GPU-...``.
        name: the model.
        free, total: bytes of its memory.
        processes: programs that compute on it now.
    """

    uuid: str
    name: str
    free: int
    total: int
    processes: int


@dataclass(frozen=True)
class Driver:
    """The driver.

    Attributes:
        version: its own.
        cuda: newest CUDA that it runs, major and minor.
        cards: all GPUs, whatever CUDA_VISIBLE_DEVICES says.
    """

    version: str
    cuda: tuple[int, int]
    cards: tuple[Card, ...]


def has_nvml() -> bool:
    """Tell whether the package that asks the driver is installed."""
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


def read_driver() -> Driver | None:
    """Ask the driver; None where there is none, or no package to ask it with."""
    if not has_nvml():
        return None
    import pynvml

    try:
        with _nvml(pynvml):
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12040 is 12.4
            return Driver(
                pynvml.nvmlSystemGetDriverVersion(),
                (cuda // 1000, cuda % 1000 // 10),
                tuple(_card(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())),
            )
    except pynvml.NVMLError:
        return None


@contextmanager
def _nvml(pynvml: Any) -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _card(pynvml: Any, index: int) -> Card:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Card(
        pynvml.nvmlDeviceGetUUID(handle),
        pynvml.nvmlDeviceGetName(handle),
        int(memory.free),
        int(memory.total),
        len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    )


def why_unused(driver: Driver, built_for: str | None, visible: str | None) -> tuple[str, str]:
    """Say why torch does not use the cards that are there, and what to do.

    Args:
        driver: with its cards.
        built_for: ``torch.version.cuda``; None for a build for CPUs.
        visible: ``CUDA_VISIBLE_DEVICES``; None where it is not set.
    """
    names = ", ".join(card.name for card in driver.cards)
    newest = ".".join(map(str, driver.cuda))
    if built_for is None:
        return f"{names}, but torch is a build for CPUs", (
            f"install one for CUDA {driver.cuda[0]} (the driver runs up to {newest})"
        )
    if int(built_for.partition(".")[0]) > driver.cuda[0]:
        return f"{names}; torch is built for CUDA {built_for}, the driver runs up to {newest}", (
            f"update the driver, or install a torch for CUDA {driver.cuda[0]}"
        )
    if visible is not None:
        return f"{names}, hidden by CUDA_VISIBLE_DEVICES={visible!r}", "unset that variable"
    return f"{names}, but torch finds none", (
        "python -c 'import torch; torch.cuda.init()' says why"
    )
