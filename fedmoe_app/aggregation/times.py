"""Tensors times a factor, or no less than a floor, each worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class Times(Mapping[str, Tensor]):
    """Tensors by name, times a factor: nothing is computed before it is read.

    They may lie on the disk, and be read once only.

    Args:
        tensors: by name.
        factor: of all of them, or by name; what has none stays as it is.
        floors: what values are at least, by name.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        factor: float | Mapping[str, float],
        floors: Mapping[str, float] | None = None,
    ) -> None:
        self._tensors, self._factor, self._floors = tensors, factor, floors or {}

    def __getitem__(self, name: str) -> Tensor:
        factor = self._factor
        if name in self._floors:
            return self._tensors[name].clamp_min(self._floors[name])
        if isinstance(factor, Mapping):
            if name not in factor:
                return self._tensors[name]
            factor = factor[name]
        return self._tensors[name] * factor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def versions(self) -> dict[str, int]:
        """Return 0 for each: what is written to is a product, made anew for the next reader."""
        return dict.fromkeys(self._tensors, 0)
