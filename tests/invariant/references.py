"""``references.json``: what the golden runs gave, and how a run differs from it.

::

    figures   run -> figures by round, and files; every machine comes to the same, nearly
    bits      machine -> run -> kind -> hash of all, and short hashes of its parts in their order

Machines are named as :func:`tests.invariant.fingerprint.machine` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.invariant.fingerprint import PART_DIGITS, Kind, figures, files, fingerprint, machine
from tests.invariant.runs import GoldenRun, run_golden, settings_of

FILE = Path(__file__).with_name("references.json")
TOLERANCE = 1e-3  # of losses and accuracies on another machine
TRAIN_TOLERANCE = 5e-3  # of losses within training: those of pflmoe's mixture differ by 6e-4
REMEDY = (
    "A change without mathematics must not change these. If the change is meant, write them anew "
    "with `python -m tests.invariant.write` and give the reason in the commit's body."
)


@dataclass(frozen=True)
class Outcome:
    """What a golden run gave."""

    figures: list[dict[str, Any]]
    files: list[str]
    kinds: Mapping[str, Kind]


def carry_out(run: GoldenRun, material: Path, folder: Path) -> Outcome:
    """Run, and read what it left behind."""
    results = run_golden(run, material, folder)
    kinds = fingerprint(results, settings_of(run))
    return Outcome(figures(results), files(results), kinds)


def read() -> dict[str, Any]:
    """Return the content of ``references.json``; empty before it was first written."""
    if not FILE.is_file():
        return {"figures": {}, "bits": {}}
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def known_bits(references: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the hashes by run that were made on a machine like this; None if there are none."""
    return references["bits"].get(machine())


# -- differences, as lines for people ----------------------------------------------------------


def differing_figures(outcome: Outcome, reference: Mapping[str, Any]) -> list[str]:
    """Tell which figures are off by more than the tolerance, and which files are missing."""
    expected = reference["figures"]
    found = [f"missing file: {name}" for name in set(reference["files"]) - set(outcome.files)]
    if len(outcome.figures) != len(expected):
        found.append(f"{len(outcome.figures)} rounds, were {len(expected)}")
    for mine, theirs in zip(outcome.figures, expected, strict=False):
        found += [
            f"round {theirs['round']}: {name} = {mine.get(name)}, was {value}"
            for name, value in theirs.items()
            if not _close(name, mine.get(name), value)
        ]
    return sorted(found)


def _close(name: str, mine: Any, theirs: Any) -> bool:
    if isinstance(theirs, float) and isinstance(mine, float):
        tolerance = TRAIN_TOLERANCE if name == "train_loss" else TOLERANCE
        return bool(mine == pytest.approx(theirs, rel=0, abs=tolerance))
    return bool(mine == theirs)


def differing_bits(outcome: Outcome, reference: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Tell which kinds differ, and the first part in which each does."""
    return [
        f"{name}: {_first_difference(outcome.kinds.get(name), reference.get(name))}"
        for name in sorted({*reference, *outcome.kinds})
        if _sha256(outcome.kinds.get(name)) != reference.get(name, {}).get("sha256")
    ]


def _sha256(kind: Kind | None) -> str | None:
    return kind.sha256 if kind else None


def _first_difference(kind: Kind | None, reference: Mapping[str, str] | None) -> str:
    if kind is None:
        return "there is none now"
    if reference is None:
        return "there was none"
    expected = list(_short_hashes(reference["parts"]))
    number = f"{len(kind.parts)} parts, were {len(expected)}; "
    differing = [
        name for name, was in zip(kind.parts, expected, strict=False) if kind.parts[name] != was
    ]
    first = f"{len(differing)} differ, first {differing[0]!r}" if differing else "the last are gone"
    return (number if len(expected) != len(kind.parts) else "") + first


def _short_hashes(joined: str) -> Iterator[str]:
    for start in range(0, len(joined), PART_DIGITS):
        yield joined[start : start + PART_DIGITS]


# -- writing -----------------------------------------------------------------------------------


def as_figures(outcome: Outcome) -> dict[str, Any]:
    """Return what ``figures`` holds of a run."""
    return {"figures": outcome.figures, "files": outcome.files}


def as_bits(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Return what ``bits`` holds of a run."""
    return {
        name: {"sha256": kind.sha256, "parts": "".join(kind.parts.values())}
        for name, kind in outcome.kinds.items()
    }


def write(references: Mapping[str, Any]) -> None:
    """Replace ``references.json``; one round and one kind a line, so that diffs say something."""
    FILE.write_text(_dumps(references, depth=5) + "\n", encoding="utf-8")


def _dumps(value: Any, depth: int, indent: str = "") -> str:
    """Write JSON with ``depth`` levels of tables and lists spread over lines."""
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value)
    if isinstance(value, list):
        if not isinstance(value[0], dict):
            return json.dumps(value)
        items = [json.dumps(item) for item in value]
        brackets = "[]"
    else:
        items = [
            f"{json.dumps(key)}: {_dumps(item, depth - 1, indent + ' ')}"
            if not _is_leaf(item)
            else f"{json.dumps(key)}: {json.dumps(item)}"
            for key, item in value.items()
        ]
        brackets = "{}"
    inner = f",\n{indent} ".join(items)
    return f"{brackets[0]}\n{indent} {inner}\n{indent}{brackets[1]}"


def _is_leaf(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"sha256", "parts"}
