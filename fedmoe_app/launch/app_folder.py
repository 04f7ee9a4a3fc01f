"""The folder of the Flower app that `flwr run` needs, also where only the package is installed.

Flower resolves the path of every file below that folder before it looks at what the app's bundle
is made of: five seconds of CPU time where a virtual environment lies there. So it is given a copy
of what ``fab-include`` can name, of which it makes the same bundle, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import fedmoe_app
from fedmoe_app.config.files import build_once
from fedmoe_app.config.paths import cache_dir

PYPROJECT = "pyproject.toml"
_HERE = Path(".")
_LARGE = 32 * 2**20  # bytes that are not copied for a bundle, which has at most 10 MB
# The first part of a pattern that names one file or folder of the app's own, and nothing deeper.
_ANCHORED = re.compile(r"/?(?P<first>[\w-][\w.-]*)/.+|/(?P<only>[\w-][\w.-]*)")


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


def lean_copy(app: Path, folder: Path) -> Path:
    """Copy to ``folder`` what an app's bundle can be made of; return the copy.

    Returns ``app`` itself where a pattern of ``fab-include`` may mean any file, where that is
    large, or where ``pyproject.toml`` is a link.
    """
    tops = _bundled(app)
    if (app / PYPROJECT).is_symlink():  # Flower reads it, and a copy would be without it
        return app
    if not tops or sum(path.lstat().st_size for top in tops for path in _files(top)) > _LARGE:
        return app
    copy = folder / app.resolve().name
    for path in (path for top in tops for path in _files(top)):
        if not path.is_symlink():  # Flower leaves links out
            target = copy / path.relative_to(app)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return copy


def _bundled(app: Path) -> list[Path]:
    """Return the files and folders of an app in which its bundle's files lie; [] if unknown."""
    try:
        project = tomllib.loads((app / PYPROJECT).read_text(encoding="utf-8"))
        patterns = project["tool"]["flwr"]["app"]["fab-include"]
        found = [_ANCHORED.fullmatch(pattern) for pattern in patterns]
    except (OSError, ValueError, KeyError, TypeError):  # whoever reads it says what is wrong
        return []
    names = {match["first"] or match["only"] for match in found if match}
    return [app / name for name in sorted({*names, PYPROJECT, ".gitignore"})] if all(found) else []


def _files(top: Path) -> Iterator[Path]:
    """Yield a file, or the files below a folder, links to files among them.

    A link to a folder is not entered, also where it is ``top``: Flower enters none.
    """
    if top.is_symlink() or not top.is_dir():
        yield from [top] if top.is_file() else []
        return
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if name != "__pycache__"]  # never in a bundle
        yield from (Path(folder, file) for file in files)


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
