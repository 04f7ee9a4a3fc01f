"""Find the result folder that somebody means by a path or by a run's name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from fedmoe_app.config.paths import results_dir
from fedmoe_app.results.folder import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, ResultsError
from fedmoe_app.results.status import STATUS_FILE

MAX_CHOICES = 10  # names that a message lists


def find_run(given: str | Path, results: Path | None = None) -> Path:
    """Return the folder of a run, absolute.

    Args:
        given: a path, or the name of a folder in ``results``; so much of the name as tells it from
            the others will do. A path into the folder's checkpoints is returned as it is.
        results: where names are looked up; None for ``$FEDMOE_HOME/results``.

    Raises:
        ResultsError: unknown or ambiguous, with the choices.
    """
    folder = results or results_dir()
    path, text = Path(given).expanduser(), str(given)
    is_name = "/" not in text and text not in ("", ".", "..")
    if not is_name:
        return _existing(path, text)
    named = folder / text
    if path.exists() and named.is_dir() and not path.samefile(named):
        return _the_run_of_two(text, Path(os.path.abspath(path)), named)
    if path.exists():
        return Path(os.path.abspath(path))
    return named if named.is_dir() else _by_beginning(text, folder)


def _existing(path: Path, text: str) -> Path:
    if path.exists():
        return Path(os.path.abspath(path))
    raise ResultsError(f"{text}: no such folder; name the result folder of a run, or a run's name")


def _the_run_of_two(text: str, here: Path, named: Path) -> Path:
    """Decide between a folder here and one among the results; only one may be a run's."""
    if not is_run(here):
        return named
    if not is_run(named):
        return here
    raise ResultsError(f"{text}: ambiguous; give the whole path: {here} or {named}")


def _by_beginning(text: str, folder: Path) -> Path:
    names = _names(folder)
    found = [name for name in names if name.startswith(text)]
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise ResultsError(
            f"{text}: {len(found)} runs in {folder} begin so; choose one of {_listed(found)}"
        )
    raise ResultsError(
        f"{text}: no such folder here, and no run of this name in {folder}; "
        + (f"choose one of {_listed(_nearest(text, names))}" if names else "there is none at all")
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run, or a comparison of runs, leaves behind."""
    marks = (STATUS_FILE, METRICS_FILE, CONFIG_FILE, CHECKPOINTS, "cells")
    return any((folder / name).exists() for name in marks)


def _names(folder: Path) -> list[str]:
    """Return the names in a folder of results, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [p.name for p in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _nearest(text: str, names: Sequence[str]) -> list[str]:
    """Return the names most like the text, then the newest."""
    alike = difflib.get_close_matches(text, names, n=MAX_CHOICES, cutoff=0.5)
    return list(dict.fromkeys([*alike, *names]))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_CHOICES} more" if len(names) > MAX_CHOICES else ""
    return ", ".join(names[:MAX_CHOICES]) + more
