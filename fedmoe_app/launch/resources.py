"""What a simulated node may use of this machine, checked before anything is started.

Ray starts as many workers as fit and gives each the GPUs that it may see (CUDA_VISIBLE_DEVICES).
Where not even one fits, Flower fails late and without saying which number was too large.
"""

from __future__ import annotations

import os

from fedmoe_app.config.errors import ConfigError


def check_cpus(cpus: int | None, threads: int) -> int:
    """Return the CPUs to set aside for a simulated node: ``train.threads`` unless told.

    Args:
        cpus: from ``--cpus``; None if it was not given.
        threads: ``train.threads``.

    Raises:
        ConfigError: fewer than the threads, or more than this machine has.
    """
    available = os.cpu_count() or 1
    if cpus is not None and cpus < threads:
        raise ConfigError(
            f"--cpus {cpus}: a client runs train.threads = {threads} threads; give at least as many"
        )
    name, number = ("train.threads =", threads) if cpus is None else ("--cpus", cpus)
    if number > available:
        raise ConfigError(
            f"{name} {number}: this machine has {available} CPUs, so not one simulated node would "
            f"start; choose at most {available}"
        )
    return number


def check_gpus(gpus: float) -> float:
    """Return the share of a GPU to set aside for a simulated node.

    Raises:
        ConfigError: no CUDA device, more than there are, or 1.5, which Ray cannot give.
    """
    if not gpus:
        return 0.0
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"--gpus {gpus:g}: choose a share up to 1, or a whole number")
    import torch  # takes seconds, and most runs do not come here

    available = torch.cuda.device_count()
    if gpus > available:
        found = f"{available} CUDA devices" if available else "no CUDA device"
        raise ConfigError(
            f"--gpus {gpus:g}: PyTorch finds {found} on this machine, so not one simulated node "
            "would start; leave --gpus out to train on the CPU"
        )
    return gpus
