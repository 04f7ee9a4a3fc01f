"""``fedmoe plot``: the pictures of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.shown.terminal import say


@command("fedmoe plot ~/.fedmoe/results/fedavg-20261120-213315")
def plot(
    run_dir: RunDir,
    formats: Annotated[
        str,
        typer.Option("--format", metavar="KIND,...", help="Kinds of files: png, svg, pdf."),
    ] = "png",
) -> None:
    """Draw the pictures of a run again."""
    from fedmoe_app.report.plots import plot_run
    from fedmoe_app.shown.pictures import KINDS, check_installed

    check_installed()
    kinds = [kind.strip() for kind in formats.split(",")]
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--format {wrong[0]!r}: not one of {', '.join(KINDS)}")
    folder = find_run(run_dir)
    read_rounds(folder)
    paths = plot_run(folder, kinds)
    if not paths:
        raise ResultsError(f"{folder}: no picture was drawn")
    for path in paths:
        say(path)
