"""A model's layers on several cards of one machine: which goes where, and how they work together.

Pipeline without overlap: one card computes at a time, its layers' input comes from the card before.
That is for a frozen base that one card does not hold; it makes nothing faster. accelerate decides
the places (``infer_auto_device_map``), transformers reads each tensor to its own.

Every layer of transformers' ``_no_split_modules`` lies on one card as a whole, with its router and
its experts, so that what is trained of it, its gradients and its optimiser state do, too. The rest
of this app sees one device, the model's *home*, which has the input embeddings: batches go there,
hidden states and logits come back to it.

accelerate puts a hook on every module. Here only the modules of the map have one: a hook hides a
module's own ``forward``, and maps in eight bits get theirs after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import CustomDtype, compute_module_sizes, get_balanced_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.config.errors import ConfigError

DeviceMap = Mapping[str, int | str | torch.device]  # device by module path, as in transformers

_USED = 0.9  # of a card's free memory, for weights; what training needs beside them is not known
_SIZES: dict[str, Any] = {"nf4": CustomDtype.INT4, "int8": torch.int8}
_GIB = 2**30


def free_memory() -> dict[int, int]:
    """Return the free bytes of every card that this process may use."""
    return {i: torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}


def spread(
    model: PreTrainedModel,
    memory: Mapping[int, int],
    packed: Collection[str] = (),
    quantization: str = "none",
) -> dict[str, int]:
    """Divide a model's layers over cards, each with about as many bytes of weights.

    Args:
        model: its values are not looked at, so that it may be on the meta device.
        memory: free bytes by card, at least two.
        packed: names of the parameters that will be quantised.
        quantization: what to.

    Raises:
        ConfigError: the weights do not fit.
    """
    whole = sorted(model._no_split_modules or ())
    sizes: dict[str, Any] = dict.fromkeys(packed, _SIZES.get(quantization))
    room = {card: int(_USED * free) for card, free in memory.items()}
    options: dict[str, Any] = {"no_split_module_classes": whole, "special_dtypes": sizes}
    # It fills what it is given: it may change room, and the last card's share is what is left.
    balanced = get_balanced_memory(model, dict(room), **options)
    found = infer_auto_device_map(model, balanced, **options)
    if set(found.values()) <= set(memory):
        return dict(found)
    size = compute_module_sizes(model, special_dtypes=sizes)[""]
    raise ConfigError(
        f'node config device-map = "auto": whole layers, {size / _GIB:.1f} GiB of weights in all, '
        f"do not fit on {len(memory)} cards with {sum(memory.values()) / _GIB:.1f} GiB free, "
        f"{_USED:.0%} of which may be used; free them, show the node more (CUDA_VISIBLE_DEVICES) "
        "or choose another model.quantization"
    )


def place(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Move a model's modules as a map says and let them work together, see :func:`connect`."""
    for name, device in device_map.items():
        model.get_submodule(name).to(device)
    connect(model, device_map)


def connect(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Let a model whose modules lie as the map says take and return tensors at home.

    What :func:`accelerate.dispatch_model` put on it goes.
    """
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            remove_hook_from_module(module)
            module.__dict__.pop("forward", None)  # the class's own, which may be another by now
    home = model.device
    ends = {id(module) for module in _ends(model)}
    skipped = getattr(model, "_skip_keys_device_placement", None)
    devices = dict(_called(model, device_map))
    for module in list(model.modules()):
        if module in devices or id(module) in ends:
            device = devices.get(module, home)
            hook = AlignDevicesHook(device, io_same_device=id(module) in ends, skip_keys=skipped)
            add_hook_to_module(module, hook)
    # As transformers does; its own annotation says nothing of it.
    model.hf_device_map = dict(device_map)  # type: ignore[assignment]


def _called(
    model: PreTrainedModel, device_map: DeviceMap
) -> Iterator[tuple[nn.Module, int | str | torch.device]]:
    """Yield the map's modules that have a forward: of a list of layers, each of the layers."""
    for name, device in device_map.items():
        waiting = [model.get_submodule(name)]
        while waiting:
            module = waiting.pop()
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                waiting += module.children()
            else:
                yield module, device


def is_spread(model: nn.Module) -> bool:
    """Tell whether a model's modules lie on more than one device."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def at_home(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the same tensors by name on the model's home, with their graph.

    For whoever adds them up. Of a model on one device they are there already; else each is copied
    when it is asked for.
    """
    return _AtHome(tensors, model.device) if is_spread(model) else tensors


class _AtHome(Mapping[str, Tensor]):
    """Tensors on one device, each copied there when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], home: torch.device) -> None:
        self._tensors, self._home = tensors, home

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._home)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """Return what this app calls by itself or listens to: the model, its halves, its heads."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    heads = [module for module in model.children() if id(module) not in inside]
    found = [model, body, *heads, model.get_output_embeddings()]
    if model.config.is_encoder_decoder:
        found += [model.get_encoder(), model.get_decoder()]
    return [module for module in found if module is not None]
