"""Spool: where the changes of a round wait until all replies are in.

Weights are known only when the last reply is there, and sums run in client order, so the changes
have to wait somewhere. The first ones, up to a limit, stay in memory as they came; the rest go to
one file and are read tensor by tensor, through a mapping: no reply is ever in memory as a whole
again.

The file has no name: the system removes it when the process ends, however it ends. It is written
over in the next round; giving it up and growing it anew costs ten times as much as writing over it.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from fedmoe_app.moe.state import ExpertKey, ModelState, Tensors

MIB = 2**20
DEFAULT_LIMIT = 16 * MIB  # bytes of a round's replies that stay in memory
_ITEM = 4  # bytes of a float32
# MAP_NORESERVE, which Python 3.11 has no name for. Pages that nobody writes to need no memory, and
# without it Linux refuses a file that is larger than its memory.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
Layout = dict[str, tuple[int, torch.Size]]  # offset in values and shape, by name


class SpoolError(OSError):
    """Changes that could not be stored; the message is the reason."""


class Spool:
    """Changes of clients, float32: in memory up to a limit, beyond it in a nameless file.

    Args:
        folder: where the file is made when it is needed; None is the system's temporary folder,
            which on some systems is memory.
        limit: bytes that stay in memory.

    Attributes:
        folder: as given; it may be changed before the file is made.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self._limit = limit
        self._kept = 0  # bytes in memory
        self._end = 0  # bytes used in the file
        self._file: IO[bytes] | None = None
        self._mapped: Tensor | None = None  # the file as one vector, as far as it was mapped
        self._layouts: dict[tuple[tuple[str, torch.Size], ...], Layout] = {}

    @property
    def file_bytes(self) -> int:
        """Bytes of this round that are in the file."""
        return self._end

    def another(self) -> Spool:
        """Return a second, empty one with the same folder and limit."""
        return Spool(self.folder, self._limit)

    def store(self, changes: ModelState, views: bool = False) -> ModelState:
        """Take over changes; what is returned reads as they did, until :meth:`clear`.

        Args:
            changes: float32.
            views: whether they are parts of something larger, which must not stay in memory.

        Raises:
            SpoolError: if the file cannot be written. What was stored before stays as it is.
        """
        size = _size(changes)
        if self._kept + size <= self._limit:
            self._kept += size
            return _copied(changes) if views else changes
        start = self._end
        try:
            for _, tensor in changes.named():
                self._append(tensor)
        except OSError as error:
            self._end = start
            where = self.folder or tempfile.gettempdir()
            raise SpoolError(f"the server could not store it in {where}: {error}") from error
        return self._stored(changes, start // _ITEM)

    def keep_part(self, stored: ModelState, part: ModelState) -> ModelState:
        """Give up what :meth:`store` returned but for a part of it, which is returned."""
        if isinstance(stored.dense, _StoredTensors):
            return part
        self._kept -= _size(stored)
        return self.store(part, views=True)  # it fits where the whole has been

    def clear(self) -> None:
        """Begin a new round: what was stored must not be read any more."""
        self._kept = self._end = 0
        if self._mapped is not None and self._mapped._version:
            self._mapped = None  # pages that a part wrote to would hide the next round's

    def close(self) -> None:
        """Remove the file."""
        self.clear()
        self._mapped = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, start: int, shape: torch.Size) -> Tensor:
        """Return values of the file as a view that is read from the disk when it is used."""
        end = start + shape.numel()
        if self._mapped is None or len(self._mapped) < end:
            self._mapped = self._map()
        return self._mapped[start:end].view(shape)

    @property
    def version(self) -> int:
        """How often what was read was written to, which changes nothing in the file."""
        return 0 if self._mapped is None else self._mapped._version

    def _append(self, tensor: Tensor) -> None:
        if tensor.dtype != torch.float32:
            raise TypeError(f"changes are float32, not {tensor.dtype}")
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        data = tensor.contiguous().view(-1).numpy().data.cast("B")
        self._file.seek(self._end)
        while data:
            written = self._file.write(data)
            self._end += written
            data = data[written:]

    def _map(self) -> Tensor:
        assert self._file is not None
        # A private copy of each page that is written to: a scheme's part that writes by mistake
        # must not end the process, as it would with a mapping that can only be read.
        mapping = mmap.mmap(
            self._file.fileno(),
            self._end,
            flags=mmap.MAP_PRIVATE | _NO_RESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
        return torch.frombuffer(mapping, dtype=torch.float32)

    def _stored(self, changes: ModelState, start: int) -> ModelState:
        """Describe changes that were written from ``start`` on, in the order of ``named()``."""
        dense, start = self._part(changes.dense, start)
        gates: dict[int, Tensors] = {}
        for layer, tensors in sorted(changes.gates.items()):
            gates[layer], start = self._part(tensors, start)
        experts: dict[ExpertKey, Tensors] = {}
        for key, tensors in sorted(changes.experts.items()):
            experts[key], start = self._part(tensors, start)
        return ModelState(dense, gates, experts)

    def _part(self, tensors: Mapping[str, Tensor], start: int) -> tuple[Tensors, int]:
        layout = self._layout(tensors)
        # Whoever folds only reads, which any mapping can do.
        part = cast(Tensors, _StoredTensors(self, layout, start))
        return part, start + sum(shape.numel() for _, shape in layout.values())

    def _layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        """Return offsets and shapes by name; one object for all clients and experts alike."""
        described = tuple((name, tensor.shape) for name, tensor in tensors.items())
        if described not in self._layouts:
            offset, layout = 0, {}
            for name, shape in described:
                layout[name] = (offset, shape)
                offset += shape.numel()
            self._layouts[described] = layout
        return self._layouts[described]


class _StoredTensors(Mapping[str, Tensor]):
    """Tensors of one part of a client's changes in the file, one after the other."""

    __slots__ = ("_layout", "_spool", "_start")

    def __init__(self, spool: Spool, layout: Layout, start: int) -> None:
        self._spool, self._layout, self._start = spool, layout, start

    def __getitem__(self, name: str) -> Tensor:
        offset, shape = self._layout[name]
        return self._spool.read(self._start + offset, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)

    def versions(self) -> dict[str, int]:
        """Return how often what lies in the same file was written to."""
        return dict.fromkeys(self._layout, self._spool.version)


def _size(changes: ModelState) -> int:
    return sum(tensor.nbytes for _, tensor in changes.named())


def _copied(changes: ModelState) -> ModelState:
    copy = ModelState()
    for key, tensor in changes.named():
        copy.insert(key, tensor.clone())
    return copy
