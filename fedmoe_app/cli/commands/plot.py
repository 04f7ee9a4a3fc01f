"""``fedmoe plot``: the pictures of a run or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.shown.terminal import say

if TYPE_CHECKING:
    from fedmoe_app.report.paper import Paper


@command("fedmoe plot ~/.fedmoe/results/fedavg-20261120-213315 --width column")
def plot(
    run_dir: RunDir,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="KIND,...",
            help="Kinds of files: png, svg, pdf.",
            show_default="png; with --width pdf",
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTH", help="For a paper: column (3.3 inches wide) or page (7 inches)."
        ),
    ] = None,
) -> None:
    """Draw the pictures of a run, or of a comparison, again; also for a paper."""
    from fedmoe_app.report.paper import PAPERS
    from fedmoe_app.shown.pictures import KINDS, check_installed

    check_installed()
    if width is not None and width not in PAPERS:
        raise ConfigError(f"--width {width!r}: not one of {', '.join(PAPERS)}")
    kinds = [kind.strip() for kind in (formats or ("pdf" if width else "png")).split(",")]
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--format {wrong[0]!r}: not one of {', '.join(KINDS)}")
    folder = find_run(run_dir)
    paths, caption = _draw(folder, kinds, PAPERS[width] if width else None)
    if not paths:
        raise ResultsError(f"{folder}: no picture was drawn")
    for path in paths:
        say(path)
    if width and caption:
        say(f"caption: {caption}")


def _draw(folder: Path, kinds: Sequence[str], paper: Paper | None) -> tuple[list[Path], str]:
    """Draw; return the files, and a caption with the command that made what is drawn."""
    from fedmoe_app.compare.reading import is_comparison, read_comparison

    if is_comparison(folder):
        from fedmoe_app.compare.compare import report
        from fedmoe_app.compare.paper import figure_caption
        from fedmoe_app.compare.plots import plot_comparison

        found = read_comparison(folder)
        results, _, metric = report(found.plan, found.outcomes)
        paths = plot_comparison(folder, found.plan, results, metric, kinds, paper)
        return paths, figure_caption(found, metric)
    from fedmoe_app.launch.launched import read_launch
    from fedmoe_app.report.plots import plot_run

    read_rounds(folder)
    launch = read_launch(folder)
    clients = f" --clients {launch.clients}" if launch and launch.clients else ""
    return plot_run(folder, kinds, paper), f"Made by fedmoe run .{clients} -c config.toml."
