"""Make ``references.json`` anew and print what changed: ``python -m tests.invariant.write``.

Hashes that were made on other machines stay for the runs that did not change on this one; the
others go, because they are out of date.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.invariant import references
from tests.invariant.fingerprint import machine
from tests.invariant.references import Outcome
from tests.invariant.runs import RUNS, make_material


def main() -> None:
    """Carry out all runs, compare, write."""
    outcomes = run_all()
    before = references.read()
    changed = print_changes(outcomes, before)
    references.write(renewed(outcomes, before, changed))


def run_all() -> dict[str, Outcome]:
    """Carry out all runs in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = folder / "material"
        material.mkdir()
        make_material(material)
        return {
            name: references.carry_out(run, material, folder / name) for name, run in RUNS.items()
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
