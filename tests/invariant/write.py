"""Make ``references.json`` anew and print what changed: ``python -m tests.invariant.write``.

With ``--new`` only runs that have no reference are carried out, and no other is touched.
Hashes that were made on other machines stay for the runs that did not change on this one; the
others go, because they are out of date.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.invariant import references
from tests.invariant.fingerprint import machine
from tests.invariant.references import Outcome
from tests.invariant.runs import RUNS, GoldenRun, make_material


def main() -> None:
    """Carry out runs, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new", action="store_true", help="only runs without a reference")
    before = references.read()
    if parser.parse_args().new:
        new = {n: run for n, run in RUNS.items() if n not in before["figures"]}
        references.write(extended(run_all(new), before))
        print("\n".join(f"{name}: new" for name in new))
        return
    outcomes = run_all(RUNS)
    changed = print_changes(outcomes, before)
    references.write(renewed(outcomes, before, changed))


def run_all(runs: Mapping[str, GoldenRun]) -> dict[str, Outcome]:
    """Carry out runs in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = folder / "material"
        material.mkdir()
        make_material(material)
        return {
            name: references.carry_out(run, material, folder / name) for name, run in runs.items()
        }


def print_changes(outcomes: Mapping[str, Outcome], before: Mapping[str, Any]) -> set[str]:
    """Print how every run differs from the references; return those that do."""
    bits = references.known_bits(before)
    print(f"\n{machine()}: " + ("hashes are there" if bits else "the first hashes of it"))
    changed = set(before["figures"]) - outcomes.keys()
    for name, outcome in outcomes.items():
        if name not in before["figures"]:
            print(f"{name}: new")
            continue
        found = references.differing_figures(outcome, before["figures"][name])
        if bits is not None:
            found += references.differing_bits(outcome, bits.get(name, {}))
        if found:
            changed.add(name)
            print("\n  ".join([f"{name}:", *found]))
    print(f"{len(changed)} of {len(outcomes)} runs changed")
    return changed


def extended(outcomes: Mapping[str, Outcome], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the references with these outcomes beside them."""
    figures = {name: references.as_figures(outcome) for name, outcome in outcomes.items()}
    bits = {name: references.as_bits(outcome) for name, outcome in outcomes.items()}
    mine = {**before["bits"].get(machine(), {}), **bits}
    return {
        "figures": {**before["figures"], **figures},
        "bits": {**before["bits"], machine(): mine},
    }


def renewed(
    outcomes: Mapping[str, Outcome], before: Mapping[str, Any], changed: set[str]
) -> dict[str, Any]:
    """Return the references with these outcomes, without what other machines had before them."""
    bits = {
        other: {name: kinds for name, kinds in runs.items() if name not in changed}
        for other, runs in before["bits"].items()
    }
    bits[machine()] = {name: references.as_bits(outcome) for name, outcome in outcomes.items()}
    figures = {
        name: references.as_figures(outcome)
        if name in changed or name not in before["figures"]
        else before["figures"][name]
        for name, outcome in outcomes.items()
    }
    return {"figures": figures, "bits": bits}


if __name__ == "__main__":
    main()
