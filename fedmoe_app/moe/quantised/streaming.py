"""Put experts together one at a time while a checkpoint is read, for quantising them.

A checkpoint of the hub has one tensor an expert and map. transformers stacks those of a layer, and
stacks gate and up maps together: for a moment three copies of a layer in 16 bits. Here its steps
only note the tensors, which are still on disk, and :func:`fedmoe_app.moe.quantised.packed.pack`
joins them expert by expert. The reverse steps, for saving, are transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)
from transformers.integrations.mxfp4 import Mxfp4Dequantize


class ExpertList:
    """What would be stacked to ``[E, out, in]``: per expert, parts to be joined along ``out``."""

    def __init__(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Take one sequence of E matrices a part, such as E gate maps and E up maps."""
        self.parts = [list(part) for part in parts]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each expert's matrix ``[out, in]``, joined when it is asked for."""
        for matrices in zip(*self.parts, strict=True):
            yield torch.cat(matrices, dim=0) if len(matrices) > 1 else matrices[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, out, in."""
        first = [part[0] for part in self.parts]
        return len(self.parts[0]), sum(m.shape[0] for m in first), first[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrices."""
        return self.parts[0][0].dtype

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.parts[0][0].device


class _ListExperts(MergeModulelist):
    """transformers' stacking of one map's experts, put off."""

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **_: Any,
    ) -> dict[str, Any]:
        count = len(input_dict)
        return {
            self.get_target_pattern(count, source, target_patterns): [
                ExpertList([input_dict.pop(source)])
            ]
            for source in list(input_dict)
        }


class _JoinLists(Concatenate):
    """transformers' joining of gate and up maps, put off."""

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **_: Any,
    ) -> dict[str, Any]:
        lists = [input_dict.pop(source)[0] for source in source_patterns if source in input_dict]
        parts = [part for experts in lists for part in experts.parts]
        return {self.get_target_pattern(target_patterns): [ExpertList(parts)]}


class _FromMXFP4(Mxfp4Dequantize):
    """transformers' reading of the format that gpt-oss is published in."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Any]:
        """Undo the cast to the model's type that all tensors to be quantised get: it is exact."""
        parts: Any = {
            name: [t.to(torch.uint8) for t in tensors] for name, tensors in input_dict.items()
        }
        input_dict.clear()
        done: dict[str, Any] = super().convert(parts, **kwargs)
        return done


def mxfp4_conversions(quantizer: Any) -> list[WeightConverter]:
    """Return how stacks of experts are read that a checkpoint has in MXFP4."""
    return [
        WeightConverter([f"{name}_blocks", f"{name}_scales"], name, [_FromMXFP4(quantizer)])
        for name in ("gate_up_proj", "down_proj")
    ]


def saved_in_full(conversions: Sequence[Any]) -> list[Any]:
    """Return the conversions without those from MXFP4, which saving would use in reverse."""
    return [
        conversion
        for conversion in conversions
        if not any(isinstance(step, _FromMXFP4) for step in getattr(conversion, "operations", ()))
    ]


def put_off_stacking(conversion: Any, packed: Sequence[str]) -> Any:
    """Return the conversion with the steps above, or itself if it does something else.

    Args:
        conversion: of transformers' list for a model.
        packed: full names of the parameters that will be quantised.
    """
    if not isinstance(conversion, WeightConverter):
        return conversion
    steps = _put_off(conversion.operations)
    (target, *others) = conversion._original_target_patterns
    if steps is None or others or not any(name.endswith(target) for name in packed):
        return conversion
    sources = conversion._original_source_patterns
    return conversion.copy(list(sources), [target], operations=steps)


def stacks_and_joins(steps: Sequence[ConversionOps]) -> bool:
    """Tell whether steps only stack one tensor an expert, and join such stacks along ``out``."""
    return _put_off(steps) is not None


def _put_off(steps: Sequence[ConversionOps]) -> list[ConversionOps] | None:
    """Return the lazy form of stacking by experts and joining along ``out``; None for others."""
    kinds = [type(step) for step in steps]
    if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]):
        return None
    if [getattr(step, "dim", None) for step in steps] not in ([0], [0, 1]):
        return None
    lazy: list[ConversionOps] = [_ListExperts(0)]
    return lazy if len(steps) == 1 else [*lazy, _JoinLists(1)]
