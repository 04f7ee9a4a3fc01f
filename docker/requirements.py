"""Write the project's dependencies as two lists for pip: of all images, and of the app images.

    python3 requirements.py pyproject.toml FOLDER

``flower.txt`` is what a SuperLink, a SuperNode and the command line need, without torch;
``app.txt`` is the whole list, without Flower's simulation (Ray), which no container uses.
Copied into a build stage on their own, the lists keep the layers of the dependencies as they are
when something else in pyproject.toml changes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

# What `fedmoe` imports before it knows which command it is to run, beside what Flower brings.
LIGHT = (
    *("flwr", "grpcio", "grpcio-health-checking", "cryptography"),
    *("pydantic", "tomli-w", "typer", "rich", "psutil"),
)


def name_of(requirement: str) -> str:
    """Return the package's name in ``name[extra]>=1``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower()


def main(pyproject: Path, folder: Path) -> None:
    """Write both lists into ``folder``."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    everything = [re.sub(r"\[simulation\]", "", line) for line in project["dependencies"]]
    light = [line for line in everything if name_of(line) in LIGHT]
    missing = set(LIGHT) - {name_of(line) for line in light}
    if missing:
        sys.exit(f"{pyproject}: no dependency is called {', '.join(sorted(missing))}")
    (folder / "flower.txt").write_text("\n".join(light) + "\n", encoding="utf-8")
    (folder / "app.txt").write_text("\n".join(everything) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
