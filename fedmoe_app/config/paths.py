"""Folders outside the repository: caches and results."""

from __future__ import annotations

import os
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
