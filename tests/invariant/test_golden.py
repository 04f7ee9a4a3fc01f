"""A change without mathematics changes no bit of any run; see ``runs.py`` for what is run.

On a machine that is not in ``references.json`` only figures are compared: rounds, losses,
accuracies, bytes, files. The tests' names say which of the two it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.invariant import references
from tests.invariant.fingerprint import machine
from tests.invariant.runs import RUNS, SLOW, make_material

REFERENCES = references.read()
BITS = references.known_bits(REFERENCES)
COMPARED = "figures" if BITS is None else "bits"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def _case(name: str) -> Any:
    marks = [pytest.mark.slow] if name in SLOW else []
    return pytest.param(name, marks=marks, id=f"{name}-{COMPARED}")


@pytest.mark.parametrize("name", [_case(name) for name in RUNS])
def test_a_run_gives_what_it_gave(name: str, material: Path, tmp_path: Path) -> None:
    outcome = references.carry_out(RUNS[name], material, tmp_path)
    found = references.differing_figures(outcome, _of(REFERENCES["figures"], name))
    if BITS is not None:
        found += references.differing_bits(outcome, _of(BITS, name))
    if found:
        pytest.fail(f"{name} differs:\n  " + "\n  ".join([*found, "", references.REMEDY]), False)


def test_bits_of_this_machine_are_known() -> None:
    if BITS is None:
        pytest.skip(f"only figures were compared: no hashes were made on {machine()}")


def test_every_reference_has_its_run() -> None:
    assert REFERENCES["figures"].keys() == RUNS.keys()


def _of(runs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in runs:
        pytest.fail(f"references.json has no run {name}. {references.REMEDY}", False)
    return runs[name]
