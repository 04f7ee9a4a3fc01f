"""The lists of a command line: schemes, seeds and values of alpha."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe_app.config.config_file import read_config_file
from fedmoe_app.config.errors import ConfigError

CENTRALISED = "centralised"  # the reference: one client that holds all data
FEDERATED = "federated"


@dataclass(frozen=True)
class SchemeEntry:
    """One row of a comparison.

    Attributes:
        name: what the row is called.
        overrides: flat run config laid over the one that all rows share.
        kind: how a cell of it is run; ``federated`` unless a benchmark brings its own way.
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    kind: str = FEDERATED


def read_schemes(text: str) -> tuple[SchemeEntry, ...]:
    """Read ``fedavg,my.module:Class,experiments/mine.toml``: names, classes and files.

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
    return entries


def read_seeds(text: str) -> tuple[int, ...]:
    """Read ``1,2,3``.

    Raises:
        ConfigError: for an empty list, a value that is no whole number, or one given twice.
    """
    seeds = tuple(_read_seed(item) for item in _items(text, "--seeds"))
    _refuse_twice(seeds, "--seeds")
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
    if not item.endswith(".toml"):
        return SchemeEntry(item.rpartition(":")[2], {"scheme": item})
    return SchemeEntry(Path(item).stem, dict(read_config_file(Path(item), "--schemes")))


def _read_seed(item: str) -> int:
    # int() would also take 1_000 and digits of other scripts.
    if not (item.isascii() and item.isdigit()):
        raise ConfigError(f"--seeds {item}: not a whole number of 0 or more, such as 1,2,3")
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
