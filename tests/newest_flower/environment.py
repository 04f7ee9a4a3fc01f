"""A virtual environment with the newest Flower that the package index has, and this project."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

# Of the environment that the tests run in: what would pull them out of the new one.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FLWR_HOME")


@dataclass(frozen=True)
class Environment:
    """Programs of a virtual environment."""

    folder: Path

    def run(self, program: str, *arguments: str, cwd: Path = REPOSITORY) -> str:
        """Run a program to its end and return all that it said; fail where it fails."""
        rest = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        done = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            env=rest,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def test(self, *chosen: str) -> str:
        """Run tests of this project there; fail where one fails, or where there is none."""
        return self.run("python", "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=",
                        "-q", *chosen)  # fmt: skip


def make(folder: Path) -> Environment:
    """Install Flower and this project; torch and other large packages are those of this Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    made = Environment(folder)
    pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    made.run(*pip, "flwr[simulation]", "click<8.5")
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "zz-borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    made.run(*pip, "--no-deps", "--editable", str(REPOSITORY))  # the declared bound is not asked
    assert sys.version_info[:2] == tuple(map(int, site.parent.name[6:].split(".")))
    return made
