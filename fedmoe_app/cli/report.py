"""``fedmoe report``: the page of a run, or of several runs and comparisons held together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.paths import results_dir
from fedmoe_app.report.run_page import write_run_page
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import REPORT_FILE, ResultsError


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write ``report.html`` and return its path.

    Args:
        folders: one run or one comparison, whose page goes into its folder; or several runs,
            which are compared.
        output: folder for the page of several runs; None for
            ``$FEDMOE_HOME/results/report-NAMES``.

    Raises:
        ConfigError: for an ``output`` where the page belongs into the folder itself.
        ResultsError: when a folder holds no results, or runs cannot be compared.
    """
    folders = list(dict.fromkeys(_existing(folder) for folder in folders))
    if len(folders) == 1:
        if output is not None:
            raise ConfigError("--output is for several runs; the page of one lies in its folder")
        return _write_one(folders[0])
    from fedmoe_app.compare.page import write_comparison_page
    from fedmoe_app.compare.reading import collect_runs, is_comparison

    if mixed := [str(folder) for folder in folders if is_comparison(folder)]:
        raise ResultsError(
            f"{', '.join(mixed)}: a comparison has a page of its own; name it alone, or name "
            "single runs (those of a comparison lie in its cells/)"
        )
    comparison = collect_runs(folders)
    target = output or results_dir() / _joined([folder.name for folder in folders])
    target = target.expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    return write_comparison_page(target, comparison)


def _write_one(folder: Path) -> Path:
    from fedmoe_app.compare.page import write_comparison_page
    from fedmoe_app.compare.reading import is_comparison, read_comparison

    if is_comparison(folder):
        return write_comparison_page(folder, read_comparison(folder))
    return write_run_page(folder)


def _existing(folder: Path) -> Path:
    path = find_run(folder.parent if folder.name == REPORT_FILE else folder)
    if not path.is_dir():
        raise ResultsError(f"{folder}: no such folder; name the result folder of a run")
    return path


def _joined(names: Sequence[str]) -> str:
    """Name the folder by the first runs: file names have an end."""
    more = f"-and-{len(names) - 3}-more" if len(names) > 3 else ""
    return "report-" + "-".join(map(_cut, names[:3])) + more


def _cut(name: str) -> str:
    """Cut a name to 40 characters and 60 bytes: a file name has at most 255 bytes."""
    return os.fsencode(name[:40])[:60].decode(errors="ignore")
