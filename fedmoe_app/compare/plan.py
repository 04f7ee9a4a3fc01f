"""What a comparison consists of: one cell for each scheme, partition and seed.

A seed fixes the partitions, the initial weights, the sampling and the order of batches
(:mod:`fedmoe_app.data.partitions`, :mod:`fedmoe_app.tasks.setup`), so all schemes of one seed and
one partition start from the same model and see the same clients.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedmoe_app.config.config_file import read_config_file
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import Flat, check
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.schema import NODES, DataConfig
from fedmoe_app.launch.preflight import check_scheme

CENTRALISED = "centralised"  # the reference: one client that holds all data
FEDERATED = "federated"
ALONE = "alone"  # a row and its kind: every client trains by itself


@dataclass(frozen=True)
class SchemeEntry:
    """One row of a comparison.

    Attributes:
        name: what the row is called.
        overrides: flat run config laid over the one that all rows share.
        kind: how a cell of it is run: ``federated`` or ``alone``.
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    kind: str = FEDERATED


def read_schemes(text: str) -> tuple[SchemeEntry, ...]:
    """Read ``fedavg,alone,my.module:Class,experiments/mine.toml``: names, classes and files.

    Raises:
        ConfigError: for an empty list, a missing or broken file, or two rows of one name.
    """
    entries = tuple(_read_scheme(item) for item in _items(text, "--schemes"))
    _refuse_twice([entry.name for entry in entries], "--schemes")
    if any(entry.name == CENTRALISED for entry in entries):
        raise ConfigError(
            f"--schemes {CENTRALISED}: that row is added by itself; leave it out, or rename the "
            "file"
        )
    if any(entry.name == ALONE and entry.kind != ALONE for entry in entries):
        raise ConfigError(
            f"--schemes {ALONE}.toml: {ALONE} is the row of clients that train by themselves; "
            "rename the file"
        )
    return entries


def read_seeds(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Read ``1,2,3``.

    Raises:
        ConfigError: for an empty list, a value that is no whole number, or one given twice.
    """
    seeds = tuple(_read_seed(item, option) for item in _items(text, option))
    _refuse_twice(seeds, option)
    return seeds


def read_alphas(text: str) -> tuple[float, ...]:
    """Read ``0.1,0.5``, concentrations of the Dirichlet partition.

    Raises:
        ConfigError: for an empty list, a value that is no number above 0, or one given twice.
    """
    alphas = tuple(_read_alpha(item) for item in _items(text, "--alphas"))
    _refuse_twice(alphas, "--alphas")
    return alphas


def _items(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not any(items):
        raise ConfigError(f"{option} {text!r}: empty; give values separated by commas")
    if not all(items):
        raise ConfigError(f"{option} {text!r}: nothing between two commas; leave one out")
    return items


def _read_scheme(item: str) -> SchemeEntry:
    if item == ALONE:
        return SchemeEntry(ALONE, dict(_BY_ITSELF), ALONE)
    if not item.endswith(".toml"):
        return SchemeEntry(item.rpartition(":")[2], {"scheme": item})
    return SchemeEntry(Path(item).stem, dict(read_config_file(Path(item), "--schemes")))


def _read_seed(item: str, option: str) -> int:
    # int() would also take 1_000 and digits of other scripts.
    if not (item.isascii() and item.isdigit()):
        raise ConfigError(f"{option} {item}: not a whole number of 0 or more, such as 1,2,3")
    return int(item)


def _read_alpha(item: str) -> float:
    try:
        alpha = float(item)
    except ValueError:
        raise ConfigError(f"--alphas {item}: not a number, such as 0.1,0.5") from None
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"--alphas {item}: must be a finite number above 0, such as 0.1")
    return alpha


def _refuse_twice(values: Sequence[Hashable], option: str) -> None:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ConfigError(f"{option}: {', '.join(twice)} stands there more than once")


NO_PARTITION = "-"  # that of the centralised reference
# Names where results go, not what they are.
_PLACE = {"output-dir": "", "run-name": ""}
# Of one client FedAvg is that client's own training.
_BY_ITSELF: Flat = {
    "scheme": "fedavg",
    "scheme-args": "",
    "min-clients": 1,
    "fraction-train": 1.0,
}
_CENTRALISED: Flat = {**_BY_ITSELF, "data.partition": "iid"}
# What all rows must share to be compared, beside the number of rounds.
_SHARED_TABLES = ("data.", "model.")


@dataclass(frozen=True)
class Partition:
    """One column: a name, and the flat run config that makes it."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run: the row and column it belongs to, and the whole flat run config.

    ``note`` tells runs of one row, column and seed apart for readers.
    """

    scheme: str
    partition: str
    seed: int
    clients: int
    flat: Flat
    kind: str
    note: str = ""

    @property
    def key(self) -> str:
        """Hash of everything that decides on the figures, but for the content of data files."""
        return hash_of([self.flat, self.clients, self.kind, version("fedmoe")])

    @property
    def label(self) -> str:
        """Name for reading."""
        place = "" if self.partition == NO_PARTITION else f", {self.partition}"
        note = f", {self.note}" if self.note else ""
        return f"{self.scheme}{place}{note}, seed {self.seed}"

    @property
    def rounds(self) -> int:
        """Federated rounds."""
        return int(self.flat["num-server-rounds"])


@dataclass(frozen=True)
class Choice:
    """The point of a grid that a row runs with on a partition, and the scores it was chosen by.

    Attributes:
        scheme, partition: the row and the column.
        point: ``train.learning-rate = 0.001``.
        by: the figure on validation rows, ``accuracy`` or ``loss``.
        scores: mean over the tuning seeds by point; None where a run failed.
    """

    scheme: str
    partition: str
    point: str
    by: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Plan:
    """All cells, and the names of rows and columns in the order given.

    ``choices`` are those of a grid, if there was one.
    """

    schemes: tuple[str, ...]
    partitions: tuple[str, ...]
    seeds: tuple[int, ...]
    clients: int
    cells: tuple[Cell, ...]
    choices: tuple[Choice, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the plan without its seeds: more seeds belong to the same comparison."""
        first = [cell for cell in self.cells if cell.seed == self.seeds[0]]
        rows = [[cell.scheme, {**cell.flat, "seed": 0}] for cell in first]
        return hash_of([rows, self.clients, version("fedmoe")])


def make_plan(
    shared: Flat,
    schemes: Sequence[SchemeEntry],
    partitions: Sequence[Partition],
    seeds: Sequence[int],
    clients: int,
    fixed: Mapping[str, Any] | None = None,
    centralised: bool = True,
) -> Plan:
    """Make the cells, seed by seed, with every run config checked and every scheme built.

    Args:
        shared: the complete flat run config that all rows share.
        schemes: the rows.
        partitions: the columns.
        seeds: one run of every row and column for each.
        clients: simulated clients.
        fixed: flat run config laid over that of the rows, too.
        centralised: whether each seed gets a run of one client that holds all data.

    Raises:
        ConfigError: for a run config that is wrong, or that differs between rows in what all
            rows must share.
    """
    over = {**(fixed or {}), "evaluate-every": 1, **_PLACE}
    cells = []
    for seed in seeds:
        if centralised:
            flat = shared | over | _CENTRALISED | {"seed": seed}
            cells.append(_cell(SchemeEntry(CENTRALISED), NO_PARTITION, flat, seed, 1))
        for partition in partitions:
            above = over | dict(partition.overrides) | {"seed": seed}
            for entry in schemes:
                flat = shared | entry.overrides | above
                _check_shared(entry, flat, shared | above)
                cells.append(_cell(entry, partition.name, flat, seed, clients))
    rows = [CENTRALISED] * centralised + [entry.name for entry in schemes]
    columns = tuple(partition.name for partition in partitions)
    return Plan(tuple(rows), columns, tuple(seeds), clients, tuple(cells))


def dirichlet(alphas: Sequence[float], shared: Flat) -> list[Partition]:
    """Return one column for each alpha."""
    columns: list[Flat] = [{"data.partition": "dirichlet", "data.alpha": alpha} for alpha in alphas]
    return [Partition(partition_name(shared | column), column) for column in columns]


def own_partition(shared: Flat) -> Partition:
    """Return the run config's own partition as the only column."""
    return Partition(partition_name(shared), {})


def partition_name(flat: Flat) -> str:
    """Return ``iid``, ``dirichlet 0.1`` or ``natural by domain``."""
    kind = str(flat["data.partition"])
    if kind == "iid":
        return kind
    alpha = f" {flat['data.alpha']:g}" if kind == "dirichlet" else ""
    column = flat["data.partition-by"] or (flat["data.label-field"] if kind == "natural" else "")
    return f"{kind}{alpha}" + (f" by {column}" if column else "")


def _cell(entry: SchemeEntry, partition: str, flat: Flat, seed: int, clients: int) -> Cell:
    try:
        config = check(flat, clients)
        _check_runs_here(config.data)
        check_scheme(config)
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}") from None
    return Cell(entry.name, partition, seed, clients, flatten_run_config(config), entry.kind)


def _check_runs_here(data: DataConfig) -> None:
    if data.source == NODES:
        raise ConfigError(
            f'data.source = "{NODES}": a comparison makes the partitions itself; name a file or '
            "a data set"
        )


def _check_shared(entry: SchemeEntry, flat: Flat, shared: Flat) -> None:
    """Refuse a row that has data, model or rounds of its own."""
    for key, value in flat.items():
        if is_shared(key) and value != shared.get(key):
            raise ConfigError(
                f"{entry.name}: {key} = {value!r}, but {shared.get(key)!r} for the other rows: "
                "all schemes of a comparison share data, model and rounds; set it for all with "
                "--run-config (or --rounds, --alphas)"
            )


def is_shared(key: str) -> bool:
    """Tell whether all rows of a comparison must have the same value of a key."""
    return key == "num-server-rounds" or key.startswith(_SHARED_TABLES)


def hash_of(value: Any) -> str:
    """Return 16 hex digits of the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
