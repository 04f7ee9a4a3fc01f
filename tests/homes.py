"""A ``$FEDMOE_HOME`` for tests that look at what clients keep: own files, the usual cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmoe_app.config.paths import cache_dir
from fedmoe_app.report import plots
from tests.toy import write_topics


@contextmanager
def home_with_topics(folder: Path) -> Iterator[Path]:
    """Give runs a home with data of topics; they draw no plots, which take longest."""
    home = home_with_cache(folder)
    write_topics(home / "train.jsonl", 40)
    write_topics(home / "test.jsonl", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(home))
        patch.setattr(plots, "plot_run", lambda folder: None)
        yield home


def home_with_cache(folder: Path) -> Path:
    """Make a home whose ``cache`` is the one in use, so that no corpus has to be built again."""
    home = folder / "home"
    link_cache(home)
    return home


def link_cache(home: Path) -> None:
    """Give a home the cache that is in use; its other files are its own."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    (home / "cache").symlink_to(cache_dir(), target_is_directory=True)


def kept_files(home: Path) -> list[str]:
    """Return what schemes keep of clients, as ``client-0/round-1.safetensors``, without the run."""
    files = (home / "clients").glob("*/*/*.safetensors")
    return sorted(f"{path.parent.name}/{path.name}" for path in files)
