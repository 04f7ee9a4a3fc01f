"""``fedmoe report``: the page of a run or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.shown.terminal import say


@command("fedmoe report ~/.fedmoe/results/fedavg-20261120-213315")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Result folders or names of runs, or one of a comparison."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the page of several runs.",
            show_default="$FEDMOE_HOME/results/report-NAMES",
        ),
    ] = None,
) -> None:
    """Write report.html of a run or a comparison again, or hold several runs together."""
    from fedmoe_app.cli.report import write_report

    say(write_report(runs, output))
