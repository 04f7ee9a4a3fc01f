"""Build a cached folder once, safely against crashes and concurrent builders.

What is cached may hold text of a private file, so nobody but this user can read it, whatever the
umask: folders have mode 0700, files 0600.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedmoe_app.config.paths import make_private, private_folder


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
