"""Built-in schemes are read from their modules' text, and never differ from what is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe_app import Scheme
from fedmoe_app.config.built_in import FOLDER, declared
from fedmoe_app.config.names import WITH_TABLE

MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
READ = {own for module in declared() for own in module.classes.values()}


def test_what_is_read_is_what_the_modules_say() -> None:
    said = set()
    for name in MODULES:
        module = importlib.import_module(f"fedmoe_app.schemes.{name}")
        for own in getattr(module, "BUILT_IN", {}).values():
            assert issubclass(getattr(module, own), Scheme)
            said.add(f"{name}:{own}")
    assert said == READ
    assert said.isdisjoint(WITH_TABLE.values())


def test_a_new_module_is_a_new_scheme(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('BUILT_IN = {"one": "One"}\nTRAITS = ("adapters",)\n')
    (tmp_path / "two.py").write_text('import torch\n\nBUILT_IN = {\n    "two": "Two",\n}\n')
    (tmp_path / "rest.py").write_text("ONE = 1\n")
    one, two = declared(tmp_path)
    assert (one.classes, one.traits) == ({"one": "one:One"}, ("adapters",))
    assert (two.classes, two.traits) == ({"two": "two:Two"}, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('BUILT_IN = {"one": "One"}\nTRAITS = ("adapter",)\n', "choose of label-skew, adapters"),
        ('BUILT_IN = {"other": "One"}\n', 'two modules declare "other"'),
    ],
)
def test_what_cannot_be_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(text)
    (tmp_path / "other.py").write_text('BUILT_IN = {"other": "Other"}\n')
    with pytest.raises(ValueError, match=reason):
        declared(tmp_path)


def test_names_need_no_torch() -> None:
    code = "import sys, fedmoe_app.config.names; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
