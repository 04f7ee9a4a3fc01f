"""Folders outside the repository: caches and results."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST_PART, _LONGEST_PATH = 255, 4095  # bytes, of Linux and macOS


def check_length(name: str) -> None:
    """Refuse a name that no file, folder, model or data set can have.

    Raises:
        ValueError: saying how long it is, and how long it may be.
    """
    part = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    whole = len(name.encode("utf-8", "surrogatepass"))
    if part > _LONGEST_PART or whole > _LONGEST_PATH:
        raise ValueError(
            f"a name of {whole} bytes, {part} of them between two slashes: a path has at most "
            f"{_LONGEST_PATH}, and a file, folder, model or data set {_LONGEST_PART}"
        )


def home() -> Path:
    """Return ``$FEDMOE_HOME``, by default ``~/.fedmoe``, as an absolute path."""
    return Path(os.environ.get("FEDMOE_HOME") or Path.home() / ".fedmoe").absolute()


def cache_dir() -> Path:
    """Return the folder of the embedded corpus, tokenizers and warmed-up base models."""
    return home() / "cache"


def results_dir() -> Path:
    """Return the folder that runs write to unless the run config names another."""
    return home() / "results"
