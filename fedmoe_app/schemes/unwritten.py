"""What parts are given to read: written to by mistake, it costs the round only, with a reason.

Tensors cannot be made read-only. So torch's count of writes to each is compared before and after a
part was called. The global state is what the next round starts from: of it a step or rule is given
copies, each made when it is looked at; one that looks at none, such as momentum, costs no memory.
Replies are not copied: what is wrong in them goes with the round. Writes that torch does not count,
through ``numpy()`` or ``data``, are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.views import Block, Reply, RoundInfo


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


class Changes(Mapping[str, Tensor]):
    """The changes of replies by client and name, read when they are asked for.

    Args:
        replies: whose they are.
        block: the only one of it; None is all.
    """

    def __init__(self, replies: Sequence[Reply], block: Block | None = None) -> None:
        self._parts: dict[int, list[Mapping[str, Tensor]]] = {}
        for reply in replies:
            if block is None:
                changes = reply.changes
                parts = (changes.dense, *changes.gates.values(), *changes.experts.values())
                self._parts[reply.client] = list(parts)
            else:
                self._parts[reply.client] = [reply.change(block) or {}]

    def __getitem__(self, name: str) -> Tensor:
        client, _, own = name.removeprefix("client ").partition(": ")
        return next(part[own] for part in self._parts[int(client)] if own in part)

    def __iter__(self) -> Iterator[str]:
        for client, parts in self._parts.items():
            yield from (f"client {client}: {name}" for part in parts for name in part)

    def __len__(self) -> int:
        return sum(len(part) for parts in self._parts.values() for part in parts)

    def versions(self) -> dict[str, int]:
        """Return how often each was written to; names that repeat in blocks count together."""
        found: dict[str, int] = {}
        for client, parts in self._parts.items():
            for part in parts:
                for name, count in versions(part).items():
                    key = f"client {client}: {name}"
                    found[key] = found.get(key, 0) + count
        return found


def tensors_of(info: RoundInfo) -> dict[str, Tensor]:
    """Return all tensors of a round's description by name."""
    found = {"num_examples": info.num_examples, "num_steps": info.num_steps}
    for position, stats in enumerate(info.routing):
        own = {name: t for name, t in vars(stats).items() if isinstance(t, Tensor)}
        found |= {f"routing[{position}].{name}": tensor for name, tensor in own.items()}
    for position, numbers in enumerate(info.statistics):
        found |= {f"statistics[{position}].{name}": tensor for name, tensor in numbers.items()}
    return found


def versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how often each tensor was written to."""
    counted = getattr(tensors, "versions", None)
    if counted is not None:
        own: dict[str, int] = counted()
        return own
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
