"""Folders outside the repository, caches and results, and who may read what lies in them.

Build a cached folder once, safely against crashes and concurrent builders.

What is cached may hold text of a private file, so nobody but this user can read it, whatever the
umask: folders have mode 0700, files 0600.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


def home() -> Path:
    """Return ``$FEDMOE_HOME``, by default ``~/.fedmoe``, as an absolute path."""
    return Path(os.environ.get("FEDMOE_HOME") or Path.home() / ".fedmoe").absolute()


def cache_dir() -> Path:
    """Return the folder of the embedded corpus, tokenizers and warmed-up base models."""
    return home() / "cache"


def results_dir() -> Path:
    """Return the folder that runs write to unless the run config names another."""
    return home() / "results"


def private_folder(path: Path) -> Path:
    """Make a folder for this user alone (0700); those above it that are missing, too.

    ``$FEDMOE_HOME`` itself and what lies above it get the modes that any new folder gets: results,
    which others may be meant to read, lie there as well.
    """
    if path.is_dir():
        return path
    if path == home() or path in home().parents:
        path.mkdir(parents=True, exist_ok=True)
        return path
    private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def make_private(tree: Path) -> None:
    """Let nobody but this user read a folder and all that lies in it: 0700, files 0600."""
    _set_modes(tree, 0o700, 0o600)


def follow_umask(tree: Path) -> None:
    """Give a folder and all that lies in it the modes that this process gives to new files.

    Some libraries write through temporary files, which are private, and others do not; after this
    the files of one folder can be read by the same people.
    """
    mask = umask()
    _set_modes(tree, 0o777 & ~mask, 0o666 & ~mask)


def umask() -> int:
    """Return the permissions that this process withholds from new files."""
    # It can only be read by setting it; a file that another thread makes meanwhile is private.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_modes(tree: Path, folders: int, files: int) -> None:
    for path in _all_below(tree):
        with suppress(FileNotFoundError):  # another process tidies up
            path.chmod(folders if path.is_dir() else files)


def _all_below(tree: Path) -> Iterator[Path]:
    yield tree
    for folder, names, files in os.walk(tree):
        for name in [*names, *files]:
            path = Path(folder, name)
            if not path.is_symlink():
                yield path


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``build`` unless it exists already.

    ``build`` writes into a temporary folder beside ``folder``, which is renamed when it is
    complete: a reader never sees half a result. Of several builders at once the first to finish
    wins and the others drop their copy, so ``build`` must be deterministic.
    """
    if folder.is_dir():
        _close(folder)
        return folder
    private_folder(folder.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # 0700
    try:
        build(draft)
        make_private(draft)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _close(folder: Path) -> None:
    """Make private what an earlier release left readable; of another user it stays as it is."""
    with suppress(OSError):
        if folder.stat().st_mode & 0o077:
            make_private(folder)


def _publish(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:
        # A non-empty target means that another builder was faster.
        if not folder.is_dir():
            raise
