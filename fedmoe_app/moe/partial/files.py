"""Where the experts of a checkpoint are on the disk, and how one of them is read alone.

The names of a checkpoint are not those of the model: most families have one tensor an expert and
map, which transformers stacks and joins while it loads. Here its own tables say which tensors make
a parameter, and its own steps make it, but from the tensors of one expert: ``[1, out, in]`` in
place of ``[E, out, in]``. Files are mapped, so that only what is read comes into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.layers import MoELayer
from fedmoe_app.moe.quantised.streaming import stacks_and_joins
from fedmoe_app.moe.structure import listed_experts


@dataclass
class _Source:
    """The checkpoint's tensors that make one parameter of a layer's experts.

    Attributes:
        target: full name of the parameter.
        shape: of one expert's part of it.
        converter: transformers' steps; None where the names alone differ.
        stacks: key of a tensor with all experts, by the converter's pattern.
        singles: keys of tensors of one expert, by pattern and expert.
    """

    target: str
    shape: tuple[int, ...]
    converter: WeightConverter | None = None
    stacks: dict[str, str] = field(default_factory=dict)
    singles: dict[str, dict[int, str]] = field(default_factory=dict)


class ExpertFiles:
    """A checkpoint's experts, read one by one when they are asked for.

    Attributes:
        dense: all other tensors of the checkpoint by key, not read yet, as ``from_pretrained``
            takes them for its ``state_dict``.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], model: PreTrainedModel, layers: Sequence[MoELayer]
    ) -> None:
        """Find the experts of a model of this kind in safetensors files; reads only headers.

        Args:
            name: ``model.name``, for the messages.
            paths: the files of the checkpoint.
            model: of the checkpoint's config; on the meta device, values are not looked at.
            layers: its MoE layers, with all experts.

        Raises:
            ConfigError: tensors of experts are missing; the first ones are named.
        """
        self._name = name
        self._config = model.config
        self._slices = _open(paths)
        self._num_experts = layers[0].num_experts
        self._fused = [layer.fused for layer in layers]
        self._sources: list[dict[str, _Source]] = []  # by layer, then by short name
        self._listed: list[list[dict[str, str]]] = []  # by layer and expert: key by short name
        self.dense: dict[str, Any] = {}
        self._sort(model, layers)
        self._check_complete(layers)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertFiles:
        """Return itself: open files are shared by copies of a model."""
        return self

    def names(self, layer: int, expert: int) -> tuple[str, ...]:
        """Return the short names of an expert's tensors, as :meth:`MoELayer.expert` has them."""
        found = self._sources[layer] if self._fused[layer] else self._listed[layer][expert]
        return tuple(found)

    def shapes(self, layer: int) -> list[tuple[int, ...]]:
        """Return the shapes of one expert's tensors in a layer."""
        if self._fused[layer]:
            return [source.shape for source in self._sources[layer].values()]
        return [tuple(self._slices[key].get_shape()) for key in self._listed[layer][0].values()]

    def read(self, layer: int, expert: int, name: str) -> Tensor:
        """Read one tensor of an expert, in the type of the file; it may be a view of the file.

        Raises:
            ConfigError: it has another shape than the model's.
        """
        if not self._fused[layer]:
            whole: Tensor = self._slices[self._listed[layer][expert][name]][...]
            return whole
        source = self._sources[layer][name]
        value = self._convert(source, expert)
        if tuple(value.shape) != source.shape:
            raise ConfigError(
                f'model.name = "{self._name}": {source.target} has experts of '
                f"{list(value.shape)}, its config says {list(source.shape)}"
            )
        return value

    def listed_slices(self, layer: int, expert: int) -> dict[str, Any]:
        """Return a listed expert's tensors by checkpoint key, not read yet; as :attr:`dense`."""
        return {key: self._slices[key] for key in self._listed[layer][expert].values()}

    def _convert(self, source: _Source, expert: int) -> Tensor:
        inputs: Any = {
            p: self._slices[key][expert : expert + 1] for p, key in source.stacks.items()
        }
        if source.converter is None:
            (stack,) = inputs.values()
            return stack[0]
        if not inputs and stacks_and_joins(source.converter.operations):
            # The same without copies to stack; a map that is not joined stays a view of the file.
            patterns = source.converter.source_patterns
            parts = [self._slices[source.singles[p][expert]][...] for p in patterns]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        inputs = {pattern: [stack] for pattern, stack in inputs.items()}
        for pattern, keys in source.singles.items():
            inputs[pattern] = [self._slices[keys[expert]][...]]
        for step in source.converter.operations:
            inputs = step.convert(
                inputs,
                source_patterns=source.converter.source_patterns,
                target_patterns=source.converter.target_patterns,
                full_layer_name=source.target,
                model=None,
                config=self._config,
                missing_keys=None,
            )
        (value,) = inputs.values()
        made: Tensor = value[0] if isinstance(value, list) else value
        return made[0]

    def _sort(self, model: PreTrainedModel, layers: Sequence[MoELayer]) -> None:
        """Divide the checkpoint's keys into experts and all else, as transformers names them."""
        fused, listed = _expert_parameters(model, layers)
        self._sources = [{} for _ in layers]
        self._listed = [[{} for _ in range(layer.num_experts)] for layer in layers]
        for target, (layer, short, shape) in fused.items():
            self._sources[layer][short] = _Source(target, shape)
        namer = _Namer(model)
        for key in sorted(self._slices, key=dot_natural_key):
            target, converter, pattern = namer.rename(key)
            if target in fused:
                layer, short, _ = fused[target]
                _note(self._sources[layer][short], key, namer.plain(key), converter, pattern)
            elif target in listed:
                layer, expert, short = listed[target]
                self._listed[layer][expert][short] = key
            else:
                self.dense[key] = self._slices[key]

    def _check_complete(self, layers: Sequence[MoELayer]) -> None:
        missing = [name for layer in layers for name in self._missing(layer)]
        if missing:
            raise ConfigError(
                f'model.name = "{self._name}": {len(missing)} tensors of experts are missing, such '
                f"as {', '.join(missing[:3])}; copy or download the model again, all shards"
            )

    def _missing(self, layer: MoELayer) -> Iterator[str]:
        if not layer.fused:
            children = listed_experts(layer.experts_module)
            for e, found in enumerate(self._listed[layer.index]):
                for short, _ in children[e].named_parameters():
                    if short not in found:
                        yield f"{layer.name}, expert {e}: {short}"
            return
        for source in self._sources[layer.index].values():
            yield from _missing_of(source, layer.num_experts)


class _Namer:
    """transformers' table of names for one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        self._converters = [m for m in mapping if isinstance(m, WeightConverter)]
        self._by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self._prefix = model.base_model_prefix
        self._known = model.state_dict()

    def rename(self, key: str) -> tuple[str, WeightConverter | None, str]:
        """Return the parameter that a key belongs to, its converter and that one's pattern."""
        name, pattern = rename_source_key(
            key, self._renamings, self._converters, self._prefix, self._known
        )
        if name not in self._known and key in self._known:
            name, pattern = rename_source_key(key, [], [], self._prefix, self._known)
        return name, self._by_pattern.get(pattern or ""), pattern or key

    def plain(self, key: str) -> str:
        """Return the key as the converters' patterns see it."""
        renamed: str = apply_renamings(key, self._renamings)
        return renamed


def _open(paths: Sequence[Path]) -> dict[str, Any]:
    """Return all tensors by key, not read yet."""
    found: dict[str, Any] = {}
    for path in paths:
        file = safe_open(path, framework="pt")
        found |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    return found


def _expert_parameters(
    model: PreTrainedModel, layers: Sequence[MoELayer]
) -> tuple[dict[str, tuple[int, str, tuple[int, ...]]], dict[str, tuple[int, int, str]]]:
    """Return layer, short name and shape of each stack, and layer, expert and name of the others.

    Both by the full names of the model's parameters.
    """
    names = {id(module): name for name, module in model.named_modules()}
    fused: dict[str, tuple[int, str, tuple[int, ...]]] = {}
    listed: dict[str, tuple[int, int, str]] = {}
    for layer in layers:
        path = names[id(layer.experts_module)]
        for short, stack in layer.fused_parameters().items():
            fused[f"{path}.{short}"] = (layer.index, short, tuple(stack.shape[1:]))
        if not layer.fused:
            for e, child in enumerate(listed_experts(layer.experts_module)):
                for short, _ in child.named_parameters():
                    listed[f"{names[id(child)]}.{short}"] = (layer.index, e, short)
    return fused, listed


def _note(
    source: _Source, key: str, plain: str, converter: WeightConverter | None, pattern: str
) -> None:
    source.converter = converter
    if "*" not in pattern:
        source.stacks[pattern] = key
        return
    number = re.search(pattern.replace("*.", r"(\d+)\."), plain)
    if number is None:  # transformers matched the same pattern
        raise ConfigError(f"{key}: cannot tell which expert it belongs to")
    source.singles.setdefault(pattern, {})[int(number[1])] = key


def _missing_of(source: _Source, num_experts: int) -> Iterator[str]:
    if source.converter is None:
        if not source.stacks:
            yield source.target
        return
    found: Mapping[str, Any] = {**source.stacks, **source.singles}
    for pattern in source.converter.source_patterns:
        if pattern not in found:
            yield f"{source.target} ({pattern})"
    for keys in source.singles.values():
        some = next(iter(keys))
        for e in range(num_experts):
            if e not in keys:
                yield keys[some].replace(f".{some}.", f".{e}.") if some != e else keys[some]
