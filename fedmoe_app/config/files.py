"""Write files and folders whole or not at all, and say who may read them.

What is half written lies under a temporary name beside the place that it is for, and is renamed
when it is complete: no reader sees half of it, and a crash leaves the old one.

Where nothing else is said files have the modes that this process gives to new files (its umask).
Private ones nobody but this user can read, whatever the umask: folders have mode 0700, files 0600.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedmoe_app.config.paths import home


def write_atomic(
    path: Path, content: str | bytes, private: bool = False, sync: bool = True
) -> Path:
    """Write a file whole or not at all. Returns ``path``.

    Args:
        path: the file, which is replaced.
        content: what it holds then; text is UTF-8.
        private: nobody but this user may read it; else the umask decides.
        sync: wait until it is on the disk.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if not private:
            os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


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


@contextmanager
def new_folder(
    folder: Path, modes: Callable[[Path], None] | None = follow_umask, replace: bool = False
) -> Iterator[Path]:
    """Give an empty private folder to fill; the end of the block makes it ``folder``.

    Args:
        folder: the new folder; those above it are made, too.
        modes: sets the modes of the folder and all in it; None leaves them as they were written.
        replace: an older ``folder`` gives way, and so does what an interrupted writer left. There
            must be one writer at a time. Otherwise only an empty folder may be there.

    Raises:
        OSError: there is a folder that holds something, or the disk is full. Nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # 0700
    try:
        yield draft
        if modes is not None:
            modes(draft)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # a full disk needs the room


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return ``folder``, private and filled by ``build`` unless it exists already.

    Of several builders at once the first to finish wins and the others drop their copy, so
    ``build`` must be deterministic.
    """
    if folder.is_dir():
        _close(folder)
        return folder
    private_folder(folder.parent)
    built = False
    try:
        with new_folder(folder, make_private) as draft:
            build(draft)
            built = True
    except OSError:
        if not (built and folder.is_dir()):  # else another builder was faster
            raise
    return folder


def sync_to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before something relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close(folder: Path) -> None:
    """Make private what an earlier release left readable; of another user it stays as it is."""
    with suppress(OSError):
        if folder.stat().st_mode & 0o077:
            make_private(folder)
