"""Run all experts of a model that was loaded with some: the others come from the disk, one by one.

For measuring where the router would send tokens if it could choose freely. An expert is read when
its tokens are there and dropped when they are through, so that no more than one that is not loaded
is in memory. They have the checkpoint's values: the node has no newer ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer
from fedmoe_app.moe.partial.files import ExpertFiles
from fedmoe_app.moe.partial.load import expert_files
from fedmoe_app.moe.partial.restrict import release_router, restrict_router
from fedmoe_app.moe.structure import listed_experts, loaded_of
from fedmoe_app.moe.training.slots import slots_of


@contextmanager
def all_experts(model: PreTrainedModel, layers: Sequence[MoELayer]) -> Iterator[None]:
    """Let the routers choose among all experts; for forward passes without gradient.

    A model that was loaded whole is left as it is.
    """
    files = expert_files(model)
    if files is None:
        yield
        return
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.enter_context(_free_router(layer))
            stream = _stream_fused if layer.fused else _stream_listed
            stack.enter_context(stream(layer, files, _absent(layer)))
        yield


def _absent(layer: MoELayer) -> list[int]:
    loaded = loaded_of(layer.experts_module) or frozenset()
    return [e for e in range(layer.num_experts) if e not in loaded]


@contextmanager
def _free_router(layer: MoELayer) -> Iterator[None]:
    release_router(layer)
    try:
        yield
    finally:
        if loaded := loaded_of(layer.experts_module):
            restrict_router(layer, loaded)


class _OnDisk(Mapping[str, Tensor]):
    """An expert's tensors by short name, read at every access."""

    def __init__(self, layer: MoELayer, files: ExpertFiles, expert: int) -> None:
        placeholder = next(iter(layer.fused_parameters().values()))
        self._like = (placeholder.device, placeholder.dtype)
        self._read = lambda name: files.read(layer.index, expert, name)
        self._names = files.names(layer.index, expert)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name).to(*self._like)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _stream_fused(layer: MoELayer, files: ExpertFiles, absent: Sequence[int]) -> Iterator[None]:
    weights = slots_of(layer).weights
    for e in absent:
        weights[e] = cast(dict[str, Any], _OnDisk(layer, files, e))
    try:
        yield
    finally:
        for e in absent:
            weights[e] = {}


@contextmanager
def _stream_listed(layer: MoELayer, files: ExpertFiles, absent: Sequence[int]) -> Iterator[None]:
    children = listed_experts(layer.experts_module)
    handles = []
    for e in absent:
        empty = {name: p.data for name, p in children[e].named_parameters()}

        def fill(module: nn.Module, args: Any, e: int = e) -> None:
            for name, p in module.named_parameters():
                p.data = files.read(layer.index, e, name).to(device=p.device, dtype=p.dtype)

        def drop(module: nn.Module, args: Any, output: Any, empty: Any = empty) -> None:
            for name, p in module.named_parameters():
                p.data = empty[name]

        handles += [
            children[e].register_forward_pre_hook(fill),
            children[e].register_forward_hook(drop),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
