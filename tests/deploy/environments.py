"""Virtual environments with exactly the packages of an image, made without a network.

What an image's list names, with all that it requires on this machine (extras and environment
markers evaluated), is linked from the running environment into a new one; nothing else is there. So
a program in it finds what it would find in the image, and so do the programs that it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

DOCKER = REPOSITORY / "docker"
SCRIPT = """#!{python}
import sys
from {module} import {attribute}
sys.exit({attribute}())
"""


def listed(image: str, folder: Path) -> list[str]:
    """The requirements that pip is given for an image, as its Dockerfile makes them."""
    command = [sys.executable, str(DOCKER / "requirements.py")]
    subprocess.run([*command, str(REPOSITORY / "pyproject.toml"), str(folder)], check=True)
    return (folder / f"{image}.txt").read_text().splitlines()


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that these requirements bring, themselves included."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(Requirement(line), frozenset[str]()) for line in requirements]
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        key = name, frozenset(requirement.extras)
        if key in seen or not _applies(requirement, extras):
            continue
        seen.add(key)
        found.add(name)
        todo += [(Requirement(line), key[1]) for line in metadata.requires(name) or []]
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def build(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment of these requirements and of this app; return its ``bin``."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    scripts = folder / "bin"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for name in sorted(closure(requirements)):
        _link(metadata.distribution(name), packages, scripts)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (packages / "fedmoe_app").symlink_to(REPOSITORY / "fedmoe_app")
    (packages / "fedmoe.dist-info").mkdir()
    about = f"Metadata-Version: 2.1\nName: fedmoe\nVersion: {project['version']}\n"
    (packages / "fedmoe.dist-info" / "METADATA").write_text(about)
    for name, value in project["scripts"].items():
        _write_script(scripts / name, value)
    return scripts


def _link(distribution: metadata.Distribution, packages: Path, scripts: Path) -> None:
    programs = {e.name: e.value for e in distribution.entry_points if e.group == "console_scripts"}
    for name, value in programs.items():
        _write_script(scripts / name, value)
    files = [Path(*file.parts) for file in distribution.files or []]
    whole = {file.parts[0] for file in files if _is_of_one_package(file)}
    for path in sorted(whole | {str(file) for file in files if file.parts[0] not in whole}):
        parts = Path(path).parts
        if parts[0] != "..":
            _symlink(distribution, path, packages / path)
        elif parts[-2] == "bin" and parts[-1] not in programs:
            _symlink(distribution, path, scripts / parts[-1])


def _is_of_one_package(file: Path) -> bool:
    """Whether a file shows that its top folder is one distribution's alone, unlike ``google``."""
    top = file.parts[0]
    return top.endswith((".dist-info", ".libs")) or file.parts[1:] == ("__init__.py",)


def _symlink(distribution: metadata.Distribution, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(os.path.abspath(str(distribution.locate_file(path))))


def _write_script(path: Path, entry: str) -> None:
    module, _, attribute = entry.partition("[")[0].strip().partition(":")
    code = SCRIPT.format(python=path.parent / "python", module=module, attribute=attribute)
    path.write_text(code)
    path.chmod(0o755)
