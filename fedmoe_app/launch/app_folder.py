"""The folder of the Flower app that `flwr run` needs, also where only the package is installed."""

from __future__ import annotations

import hashlib
import shutil
import sys
from importlib import metadata
from pathlib import Path

import fedmoe_app
from fedmoe_app.config.files import build_once
from fedmoe_app.config.paths import cache_dir

PYPROJECT = "pyproject.toml"
_HERE = Path(".")


def app_folder(given: Path) -> Path:
    """Return ``given``, or the installed app where ``given`` is "." and holds no app.

    From a clone, or an editable install, the installed app is the clone. A wheel carries its
    ``pyproject.toml`` along (share/fedmoe in the environment); from it and the package a folder
    under ``$FEDMOE_HOME/cache/app`` is made once for each content.
    """
    if given != _HERE or (given / PYPROJECT).is_file():
        return given
    package = Path(fedmoe_app.__file__).parent
    if (package.parent / PYPROJECT).is_file():
        return package.parent
    pyproject = _shipped_pyproject()
    if pyproject is None:
        return given  # whoever reads it says that there is no app
    return build_once(
        cache_dir() / "app" / _key(package, pyproject),
        lambda draft: _write_app(draft, package, pyproject),
    )


def let_import(app: Path) -> None:
    """Let this process import the packages of an app's folder, as Flower's own processes do.

    A scheme of the app's own is looked at before anything is started. What is installed goes
    first: a folder hides no library.
    """
    folder = str(app.absolute())
    if folder not in sys.path:
        sys.path.append(folder)


def _shipped_pyproject() -> Path | None:
    for file in metadata.files("fedmoe") or []:
        if file.name == PYPROJECT:
            path = Path(str(file.locate())).resolve()
            return path if path.is_file() else None
    return None


def _key(package: Path, pyproject: Path) -> str:
    digest = hashlib.sha256()
    shipped = (path for path in package.rglob("*") if path.suffix in (".py", ".json"))
    for path in [pyproject, *sorted(shipped)]:
        digest.update(str(path.relative_to(path.anchor)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _write_app(folder: Path, package: Path, pyproject: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, folder / package.name, ignore=ignore)
    shutil.copyfile(pyproject, folder / PYPROJECT)
    for file in metadata.files("fedmoe") or []:
        if file.name in ("LICENSE", "README.md"):
            shutil.copyfile(str(file.locate()), folder / file.name)
