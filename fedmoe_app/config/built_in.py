"""Which schemes are built in, read from the text of their modules.

A module of ``fedmoe_app/schemes`` declares its schemes, and what they have in common, in two
constants::

    BUILT_IN = {"ffalora": "FFALoRA", "rolora": "RoLoRA"}  # name: class
    TRAITS = ("adapters",)  # of TRAITS below; may be left out

The command line knows names without torch, whose import takes seconds, so the text is read and not
imported. So a new scheme is a new module and nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "schemes"
LOSS, ADAPTERS, RESIDUAL = "label-skew", "adapters", "residual"
# A loss against label skew, which can be the loss of a combination; needs adapters; needs adapters
# with a third matrix that the server moves.
TRAITS = (LOSS, ADAPTERS, RESIDUAL)

_DECLARED = re.compile(r"^(BUILT_IN|TRAITS) = (\{[^}]*\}|\([^)]*\))", re.MULTILINE)


@dataclass(frozen=True)
class Declared:
    """What a module of schemes declares.

    Attributes:
        classes: ``module:Class`` by the scheme's name.
        traits: of :data:`TRAITS`.
    """

    classes: dict[str, str]
    traits: tuple[str, ...]


@cache
def declared(folder: Path = FOLDER) -> tuple[Declared, ...]:
    """Return what the modules of a folder declare, in the order of their names.

    Raises:
        ValueError: a trait that there is not, or a name that two modules have.
    """
    found = tuple(_read(folder))
    names = [name for module in found for name in module.classes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'{folder}: two modules declare "{twice[0]}"')
    return found


def _read(folder: Path) -> Iterator[Declared]:
    for path in sorted(folder.glob("*.py")):
        constants = dict(_DECLARED.findall(path.read_text(encoding="utf-8")))
        if "BUILT_IN" not in constants:
            continue
        names = ast.literal_eval(constants["BUILT_IN"])
        traits = tuple(ast.literal_eval(constants.get("TRAITS", "()")))
        if unknown := [trait for trait in traits if trait not in TRAITS]:
            raise ValueError(f"{path}: TRAITS: {unknown[0]!r}: choose of {', '.join(TRAITS)}")
        yield Declared({name: f"{path.stem}:{own}" for name, own in names.items()}, traits)


def with_trait(trait: str) -> dict[str, str]:
    """Return the schemes that have a trait: ``module:Class`` by name."""
    return {n: own for m in declared() if trait in m.traits for n, own in m.classes.items()}
