"""``fedmoe partition``: how a data set would be split over clients, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from rich import box
from rich.cells import cell_len

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.lists import base_names
from fedmoe_app.config.schema import NODES, RunConfig
from fedmoe_app.data.partitions import partition_labels, partition_sizes
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.report.cubes import Axis
from fedmoe_app.report.files import alone
from fedmoe_app.report.heat import Map, file_map, scale_of
from fedmoe_app.shown.pictures import picture, picture_names, save
from fedmoe_app.shown.terminal import Console, Table
from fedmoe_app.shown.text import readable, shorten, tell_apart

MAX_COLUMNS = 8  # values that get a column in the table; the plot shows all
WIDTHS = (36, 24, 12)  # at most, of such a column: as wide as there is room for
MAX_TICK, MAX_TITLE = 24, 40  # characters of a value in the picture, and of a name in the title
_FIRST_COLUMNS, _REST_COLUMN, _GAP = 30, 12, 3  # widths


@dataclass(frozen=True)
class Split:
    """Examples by client and value.

    Attributes:
        values: labels, or values of the partition column, by total count, largest first; empty
            where the data has neither.
        counts: examples of each client of each value, ``[N, V]`` int64.
        sizes: examples of each client, ``[N]``.
    """

    values: tuple[str, ...]
    counts: np.ndarray
    sizes: tuple[int, ...]

    @property
    def divergence(self) -> np.ndarray:
        """Total variation distance of each client's mix from the overall one, ``[N]`` in 0..1."""
        if not self.values:
            return np.zeros(len(self.sizes))
        shares = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        overall = self.counts.sum(axis=0) / self.counts.sum()
        return np.abs(shares - overall).sum(axis=1) / 2


def split_of(config: RunConfig, num_clients: int) -> Split:
    """Split the run's training data as the clients would.

    Raises:
        ConfigError: every node brings its own data.
        PartitionError, DataError: the data cannot be read or split in this way.
    """
    if config.data.source == NODES:
        raise ConfigError(
            'data.source = "nodes": every node brings its own data, so there is nothing to split'
        )
    data = load_text_data(config.data, with_test=False)
    by_client = partition_labels(data.train, config.data, num_clients, config.seed)
    sizes = partition_sizes(data.train, config.data, num_clients, config.seed)
    totals: dict[str | int, int] = {}
    for counts in by_client:
        for value, count in counts.items():
            totals[value] = totals.get(value, 0) + count
    values = sorted(totals, key=lambda value: (-totals[value], str(value)))
    table = np.array(  # [N, V]
        [[counts.get(value, 0) for value in values] for counts in by_client], dtype=np.int64
    ).reshape(num_clients, len(values))
    names = tuple(_name(value, data.label_names) for value in values)
    return Split(names, table, tuple(sizes))


def print_split(split: Split, console: Console) -> None:
    """Print a row a client: its examples, how unusual they are, and its commonest values."""
    shown, most = _columns(split, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("client", "examples", "distance"):
        table.add_column(header, justify="right", no_wrap=True, min_width=len(header))
    for value in shown:
        table.add_column(value, justify="right", max_width=most, overflow="fold")
    rest = len(split.values) - len(shown)
    if rest:
        table.add_column(f"{rest} more", justify="right", no_wrap=True)
    for client, size in enumerate(split.sizes):
        counts = split.counts[client]
        cells = [str(count) for count in counts[: len(shown)]]
        cells += [str(counts[len(shown) :].sum())] if rest else []
        table.add_row(str(client), str(size), f"{split.divergence[client]:.2f}", *cells)
    console.print(table)
    console.print(
        f"{sum(split.sizes)} examples, {len(split.sizes)} clients of {min(split.sizes)} to "
        f"{max(split.sizes)}; mean distance from the overall mix {split.divergence.mean():.2f} "
        "(0 the same, 1 nothing in common)"
    )


def _columns(split: Split, width: int) -> tuple[list[str], int]:
    """Return the names of the values that get a column, and how wide one may be.

    Names are folded where there is no room for them, but no narrower than the last of WIDTHS: then
    fewer values get a column.
    """
    named = tell_apart(split.values[:MAX_COLUMNS], WIDTHS[0])
    rest = _REST_COLUMN if len(split.values) > MAX_COLUMNS else 0
    for most in WIDTHS:
        if _FIRST_COLUMNS + sum(_widths(split, named, most)) + rest <= width:
            return named, most
    room = width - _FIRST_COLUMNS - _REST_COLUMN
    fit = [i for i in range(1, len(named)) if sum(_widths(split, named[:i], most)) <= room]
    return named[: max(fit, default=1)], most


def _widths(split: Split, names: Sequence[str], most: int) -> list[int]:
    digits = len(str(split.counts.max(initial=0)))
    return [_GAP + max(digits, min(most, cell_len(name))) for name in names]


def plot_split(split: Split, title: str, path: Path) -> Path:
    """Draw the examples by client and value as a heat map; returns ``path``."""
    if not split.values:  # no labels: one column with all examples
        split = Split(("all",), np.array(split.sizes, dtype=np.int64)[:, None], split.sizes)
    names = picture_names(split.values, MAX_TICK)
    clients = Axis("client (examples)", tuple(f"{i}  ({n})" for i, n in enumerate(split.sizes)))
    each = Map("", "", "", clients.name, "", "count", label="examples")
    counts = split.counts.astype(float)
    lines = [picture(line) for line in wrap(title, max(60, 2 * len(names)))]
    spec = file_map(
        each, lines, clients, Axis("", tuple(names)), counts, scale_of(each, counts, 0, 1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return save({path: alone(spec)})[0]


def describe_setting(config: RunConfig) -> str:
    """Return how the run config splits, for a title."""
    data = config.data
    source, column = (
        shorten(readable(text), MAX_TITLE)
        for text in (base_names(data.source), data.partition_column)
    )
    by = "" if data.partition == "iid" else f" by {column}"
    alpha = f", α = {data.alpha:g}" if data.partition == "dirichlet" else ""
    return f"{source}: {data.partition}{by}{alpha}, seed {config.seed}"


def _name(value: str | int, label_names: Sequence[str]) -> str:
    return label_names[value] if isinstance(value, int) and label_names else str(value)
