"""What the schemes' mechanisms did in a comparison, from the diagnostics of its runs.

    python -m benchmarks.mechanisms FOLDER      (of fedmoe compare, or of benchmarks.schemes)

A row a scheme, means over rounds, layers, experts and seeds:

    clients an expert   effective number of clients in an expert's mean, (Σw)²/Σw²
    conflict            share of changes with a negative dot product with the combined change
    κ                   by how much the projection of FC-MoE lengthens the step
    S, D                mean cosine of two clients' regions, and of their changes of one expert
    distance            total variation between a client's mean routing and the reference
    r(c)                share of the experts' importance that was trained
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedmoe_app import read_metrics
from fedmoe_app.compare.tables import markdown_table

HEADERS = ("scheme", "clients an expert", "conflict", "κ", "S", "D", "distance", "r(c)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    found: dict[str, list[dict[str, float]]] = {}
    with (folder / "comparison.csv").open(newline="") as file:
        for cell in csv.DictReader(file):
            numbers = mechanisms(folder / "cells" / cell["cell"])
            if numbers:
                found.setdefault(cell["scheme"], []).append(numbers)
    print("\n".join(markdown_table(HEADERS, [_row(name, runs) for name, runs in found.items()])))


def mechanisms(run: Path) -> dict[str, float]:
    """Return the numbers of one run; those that its scheme does not tell are absent."""
    of_rounds = [line["diagnostics"] for line in read_metrics(run) if line.get("diagnostics")]
    parts: dict[str, Callable[[Mapping[str, Any]], Iterable[float]]] = {
        "clients an expert": _effective_clients,
        "conflict": lambda d: _numbers(d.get("conflict")),
        "κ": lambda d: _numbers(d.get("kappa")),
        "S": lambda d: _numbers(d.get("similarity_mean")),
        "D": lambda d: _numbers(d.get("agreement_mean")),
        "distance": lambda d: _numbers(d.get("reference_distance")),
        "r(c)": lambda d: _numbers(d.get("selection_ratio")),
    }
    values = {name: [x for d in of_rounds for x in part(d)] for name, part in parts.items()}
    return {name: statistics.fmean(found) for name, found in values.items() if found}


def _effective_clients(diagnostics: Mapping[str, Any]) -> Iterable[float]:
    for layer in diagnostics.get("expert_weights") or ():
        for weights in layer:
            known = [w for w in weights or () if w is not None]
            if sum(known) > 0:
                yield sum(known) ** 2 / sum(w * w for w in known)


def _numbers(value: Any) -> Iterable[float]:
    """Yield the numbers of nested lists; null where an expert was trained by nobody."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif value is not None:
        yield value


def _row(scheme: str, runs: list[dict[str, float]]) -> tuple[str, ...]:
    cells = [[run[name] for run in runs if name in run] for name in HEADERS[1:]]
    return (scheme, *(f"{statistics.fmean(found):.4g}" if found else "-" for found in cells))


if __name__ == "__main__":
    main()
