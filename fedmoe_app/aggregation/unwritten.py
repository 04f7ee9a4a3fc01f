"""Global values as parts of the server see them: written to by mistake, they cost the round only.

The global state is what the next round starts from, and its tensors cannot be made read-only. So a
step or rule is given a copy of each tensor that it looks at, made when it does; one that looks at
none, such as momentum, costs no memory. Which copies were written to tells torch's count of writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from fedmoe_app.schemes.faults import PartError


class GuardedValues(Mapping[str, Tensor]):
    """Copies of tensors by name, each made when it is first asked for."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._copies: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._copies:
            self._copies[name] = self._values[name].clone()
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def versions(self) -> dict[str, int]:
        """Return how often each copy was written to; 0 for what nobody has asked for."""
        return {name: self._copies[name]._version if name in self._copies else 0 for name in self}


def versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how often each tensor was written to."""
    if isinstance(tensors, GuardedValues):
        return tensors.versions()
    return {name: tensor._version for name, tensor in tensors.items()}


class Unwritten:
    """Notes tensors before a part sees them, to find out whether it wrote to them.

    Args:
        view: what the part calls the object that it is given, such as ``now``.
        tensors: by the attribute of it that they are.
    """

    def __init__(self, view: str, **tensors: Mapping[str, Tensor]) -> None:
        self._view, self._tensors = view, tensors
        self._before = {what: versions(found) for what, found in tensors.items()}

    def check(self, part: object, method: str) -> None:
        """Refuse a write.

        Raises:
            PartError: naming the part and what it wrote to.
        """
        for what, before in self._before.items():
            now = versions(self._tensors[what])
            if written := [name for name, count in before.items() if now[name] != count]:
                raise PartError.of(
                    part,
                    method,
                    f"wrote in place to {self._view}.{what} ({', '.join(written[:5])}); return new "
                    "tensors",
                )
