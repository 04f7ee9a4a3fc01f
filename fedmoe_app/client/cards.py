"""Whether a client divides the frozen base among its GPUs: ``device-map`` of the node config."""

from __future__ import annotations

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.node import Node
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.spread import free_memory

_LEAST = 2


def cards_of(node: Node, config: RunConfig) -> dict[int, int] | None:
    """Return the free bytes of each GPU to divide the model among; None for one device.

    Raises:
        ConfigError: the node asks for it, and the run trains more than a frozen base with something
            on it, or loads chosen experts only, or there are fewer than two GPUs.
    """
    if node.device_map is None:
        return None
    setting, model = f'node config device-map = "{node.device_map}"', config.model
    if model.train == "all":
        raise ConfigError(
            f'{setting}: it divides a frozen base among GPUs, and with model.train = "all" there '
            'is none; choose "experts" or "expert-lora", or leave device-map out'
        )
    if model.experts_in_memory != "all":
        raise ConfigError(
            f"{setting}: it divides whole models, and with model.experts-in-memory = "
            f'"{model.experts_in_memory}" this node loads some experts only; choose "all", or '
            "leave device-map out"
        )
    free = free_memory()
    if len(free) < _LEAST:
        raise ConfigError(
            f"{setting}: this process sees {len(free)} GPUs, and dividing takes at least {_LEAST}; "
            "show it more (CUDA_VISIBLE_DEVICES), or leave device-map out"
        )
    return free
