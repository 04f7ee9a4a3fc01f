"""What a hostile client costs: attack x scheme x rule, and what a rule costs without one.

    python -m benchmarks.attacks              all tables of docs/trust.md
    python -m benchmarks.attacks cost rules   some of them

Tables: ``cost`` (rules without an attacker, paired by seed), ``honest`` (the default guard without
an attacker, by scheme), ``guard`` (attacks on each scheme), ``skewed`` (the same on FedAvg where
clients share few classes),
``rules`` (attacks on FedAvg under each rule), ``liars`` (the same with several liars),
``measured`` (lies about what q-FedAvg and SCAFFOLD measure beside the changes), ``app`` (a few of
them in real rounds of the app), ``sums`` (there, too: lies about sums of a head and weights of a
merge). The others run on the toy of :mod:`benchmarks.toy_moe`. A figure is the final accuracy of
the global model in percent, or points of it that were lost.

Each run is written down when it is done, in ``$FEDMOE_HOME/benchmarks/attacks``, so that a
benchmark that was stopped goes on where it was. Delete the folder after a change that matters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.attacks_in_app import federate_in_app
from benchmarks.cells import print_markdown
from benchmarks.hostile import ATTACKS, OF_SCHEME
from benchmarks.toy_moe import CLIENTS, federate
from fedmoe_app import make_scheme, parse_run_config
from fedmoe_app.config.paths import home

SCHEMES = ("fedavg", "fedprox", "fedmoe", "hfedmoe", "fcmoe", "fedalign")
MEASURING = ("qfedavg", "scaffold")  # numbers beside the changes
GUARDS = ("off", "default", "tight")
# A rule is a scheme under a guard.
RULES = {
    "mean": ("fedavg", "off"),
    "guard": ("fedavg", "default"),
    "guard, tight": ("fedavg", "tight"),
    "geometricmedian": ("geometricmedian", "default"),
    "trustedclip": ("trustedclip", "default"),
    "krum": ("krum", "default"),
    "median": ("median", "default"),
    "trimmedmean": ("trimmedmean", "default"),
    "multikrum": ("multikrum", "default"),
    "centredclip": ("centredclip", "default"),
    "fltrust": ("fltrust", "default"),
    "geometricmedian, tight": ("geometricmedian", "tight"),
}
ALPHA, SKEWED = 0.5, 0.1  # of Dirichlet
SEEDS, COST_SEEDS = (0, 1), tuple(range(8))
IN_APP = ("none", "scale", "examples")
ALIKE = ("multikrum", "centredclip")  # decide by block as the median does
OF_TOY = 0.1  # q-FedAvg's constant; 1/learning rate is SGD's, and clients train by Adam
SEVERAL, BY_SEVERAL = (2, 3, 4), ("sign", "little", "sideways")
SUMS_IN_APP = {"closed-form head": "greedy sums", "grammerge": "gram"}


@dataclass(frozen=True)
class Cell:
    """A run."""

    scheme: str
    attack: str
    guard: str
    alpha: float
    seed: int
    app: bool = False
    hostile: int = 1

    @property
    def key(self) -> str:
        """Its name among the runs that are done."""
        return json.dumps(asdict(self), sort_keys=True)


class Runs:
    """What came of cells, in a file."""

    def __init__(self) -> None:
        folder = home() / "benchmarks" / "attacks"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "cells.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._found = {line["cell"]: line for line in map(json.loads, lines)}

    def of(self, cell: Cell) -> dict[str, Any]:
        """Return what came of a cell, which is run if it was not."""
        if cell.key not in self._found:
            started = time.process_time()
            line = {"cell": cell.key, **run(cell)}
            line["cpu_seconds"] = round(time.process_time() - started, 2)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._found[cell.key] = line
        return self._found[cell.key]

    def accuracy(self, cells: Iterable[Cell]) -> float:
        """Return the mean accuracy in percent."""
        return 100 * statistics.fmean(self.of(cell)["accuracy"] for cell in cells)


def run(cell: Cell) -> dict[str, Any]:
    """Carry out a cell."""
    if cell.app:
        return federate_in_app(cell.scheme, cell.attack, cell.guard, cell.alpha, cell.seed)
    scheme = make_scheme(parse_run_config({"scheme": cell.scheme, **_told(cell)}))
    return asdict(federate(scheme, cell.attack, cell.guard, cell.alpha, cell.seed, cell.hostile))


def _told(cell: Cell) -> dict[str, str]:
    """Return what a rule is told that has to know how many clients lie."""
    args: dict[str, Any] = {}
    if cell.scheme in ("krum", "multikrum"):
        args = {"bad": cell.hostile}
    elif cell.scheme == "trimmedmean":
        args = {"share": max(0.2, cell.hostile / CLIENTS)}
    elif cell.scheme == "qfedavg":
        args = {"lipschitz": OF_TOY}
    return {"scheme-args": json.dumps(args)} if args else {}


def cost(runs: Runs) -> None:
    """Print what each rule costs where nobody lies, paired by seed with the plain mean."""
    for alpha, names in ((SKEWED, tuple(RULES)), (ALPHA, tuple(RULES)[:3])):
        print(f"\nNobody lies, Dirichlet {alpha}, {len(COST_SEEDS)} seeds:\n")
        headers = ["rule", "accuracy", "against the mean", "clipped", "capped"]
        print_markdown(headers, [_cost(runs, name, alpha) for name in names])


def _cost(runs: Runs, name: str, alpha: float) -> list[str]:
    scheme, guard = RULES[name]
    found = [runs.of(Cell(scheme, "none", guard, alpha, seed)) for seed in COST_SEEDS]
    plain = [runs.of(Cell("fedavg", "none", "off", alpha, seed)) for seed in COST_SEEDS]
    gained = [
        100 * (own["accuracy"] - its["accuracy"]) for own, its in zip(found, plain, strict=True)
    ]
    error = statistics.stdev(gained) / len(gained) ** 0.5
    accuracy = 100 * statistics.fmean(own["accuracy"] for own in found)
    touched = [str(sum(own[what] for own in found)) for what in ("clipped", "capped")]
    return [name, f"{accuracy:.1f}", f"{statistics.fmean(gained):+.2f} ± {error:.2f}", *touched]


def honest_table(runs: Runs) -> None:
    """Print what the default guard costs each scheme where nobody lies, paired by seed."""
    rows = []
    for scheme in (*SCHEMES, *MEASURING):
        guarded, plain = (
            [runs.of(Cell(scheme, "none", guard, ALPHA, seed)) for seed in COST_SEEDS]
            for guard in ("default", "off")
        )
        pairs = zip(guarded, plain, strict=True)
        gained = [100 * (own["accuracy"] - its["accuracy"]) for own, its in pairs]
        error = statistics.stdev(gained) / len(gained) ** 0.5
        rows.append([scheme, f"{statistics.fmean(gained):+.2f} ± {error:.2f}"])
    print(f"\nNobody lies, Dirichlet {ALPHA}, {len(COST_SEEDS)} seeds; points gained:\n")
    print_markdown(["scheme", "default against off"], rows)


def guard_table(runs: Runs) -> None:
    """Print accuracy without, and points lost to each attack, by scheme and guard."""
    rows = [
        [scheme, guard, *_losses(runs, scheme, guard, ATTACKS)]
        for scheme in SCHEMES
        for guard in GUARDS
    ]
    print(f"\nOne of ten lies, Dirichlet {ALPHA}, {len(SEEDS)} seeds; points lost:\n")
    print_markdown(["scheme", "guard", *ATTACKS], rows)


def skewed_table(runs: Runs) -> None:
    """Print what a wrong direction costs FedAvg where clients share few classes."""
    attacks, seeds = ("none", "sign", "sideways"), COST_SEEDS
    rows = [[guard, *_losses(runs, "fedavg", guard, attacks, 1, seeds, SKEWED)] for guard in GUARDS]
    print(f"\nFedAvg, one of ten lies, Dirichlet {SKEWED}, {len(seeds)} seeds; points lost:\n")
    print_markdown(["guard", *attacks], rows)


def rules_table(runs: Runs) -> None:
    """Print the same by rule."""
    rows = [[name, *_losses(runs, *RULES[name], ATTACKS)] for name in RULES]
    print(f"\nFedAvg by rule, one of ten lies, Dirichlet {ALPHA}, {len(SEEDS)} seeds:\n")
    print_markdown(["rule", *ATTACKS], rows)


def measured_table(runs: Runs) -> None:
    """Print what lies cost about what schemes measure beside the changes."""
    for scheme in MEASURING:
        lies = OF_SCHEME[scheme]
        rows = [[guard, *_losses(runs, scheme, guard, ("none", "sign", *lies))] for guard in GUARDS]
        print(f"\n{scheme}, one of ten lies, Dirichlet {ALPHA}, {len(SEEDS)} seeds:\n")
        print_markdown(["guard", "none", "sign", *lies], rows)


def liars_table(runs: Runs) -> None:
    """Print what several liars cost, by rule."""
    rows = []
    for name in RULES:
        if name in ALIKE:
            continue
        lost = [
            loss
            for hostile in SEVERAL
            for loss in _losses(runs, *RULES[name], ("none", *BY_SEVERAL), hostile)[1:]
        ]
        rows.append([name, *lost])
    print(f"\nFedAvg by rule, several of ten lie, Dirichlet {ALPHA}, {len(SEEDS)} seeds:\n")
    print_markdown(["rule", *(f"{own}, {n}" for n in SEVERAL for own in BY_SEVERAL)], rows)


def app_table(runs: Runs) -> None:
    """Print some of it in real rounds of the app, one seed."""
    rows = []
    for guard in GUARDS:
        cells = {
            attack: runs.accuracy([Cell("fedavg", attack, guard, ALPHA, 0, app=True)])
            for attack in IN_APP
        }
        lost = [f"{cells['none'] - cells[attack]:.1f}" for attack in IN_APP[1:]]
        rows.append([guard, f"{cells['none']:.1f}", *lost])
    print(f"\nFedAvg in the app, one of ten lies, Dirichlet {ALPHA}, one seed:\n")
    print_markdown(["guard", *IN_APP], rows)


def sums_table(runs: Runs) -> None:
    """Print what lies about sums and weights cost, in real rounds of the app, one seed."""
    rows = []
    for scheme, attack in SUMS_IN_APP.items():
        for guard in GUARDS[:2]:
            found = [
                runs.accuracy([Cell(scheme, what, guard, ALPHA, 0, app=True)])
                for what in ("none", attack)
            ]
            rows.append([scheme, guard, f"{found[0]:.1f}", f"{found[0] - found[1]:.1f}"])
    print(f"\nSums and weights in the app, one of ten lies, Dirichlet {ALPHA}, one seed:\n")
    print_markdown(["scheme", "guard", "none", "its lie"], rows)


def _losses(
    runs: Runs,
    scheme: str,
    guard: str,
    attacks: Iterable[str],
    hostile: int = 1,
    seeds: Sequence[int] = SEEDS,
    alpha: float = ALPHA,
) -> list[str]:
    """Return the accuracy without an attack, and the points lost to each."""
    found = {
        attack: runs.accuracy(
            Cell(scheme, attack, guard, alpha, seed, hostile=hostile if attack != "none" else 1)
            for seed in seeds
        )
        for attack in attacks
    }
    honest = found.pop("none")
    return [f"{honest:.1f}", *(f"{honest - accuracy:.1f}" for accuracy in found.values())]


TABLES = {
    "cost": cost,
    "honest": honest_table,
    "guard": guard_table,
    "skewed": skewed_table,
    "rules": rules_table,
    "measured": measured_table,
    "liars": liars_table,
    "app": app_table,
    "sums": sums_table,
}


def main(names: Sequence[str] = ()) -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    torch.set_num_threads(1)
    runs = Runs()
    for name in names or parser.parse_args().tables or TABLES:
        TABLES[name](runs)


if __name__ == "__main__":
    main()
