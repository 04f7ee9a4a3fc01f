"""Build a cached folder once, safely against crashes and concurrent builders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``build`` unless it exists already.

    ``build`` writes into a temporary folder beside ``folder``, which is renamed when it is
    complete: a reader never sees half a result. Of several builders at once the first to finish
    wins and the others drop their copy, so ``build`` must be deterministic.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(draft)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _publish(draft: Path, folder: Path) -> None:
    # mkdtemp made it private, and so it stays: it may hold somebody's text.
    try:
        os.rename(draft, folder)
    except OSError:
        # A non-empty target means that another builder was faster.
        if not folder.is_dir():
            raise
