"""``fedmoe table``: a row a round, or a row a scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.classes import kept_classes
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.results.table import print_classes, print_table, write_classes, write_rounds
from fedmoe_app.shown.terminal import say_lines

FORMATS = ("text", "markdown", "latex")


@command("fedmoe table ~/.fedmoe/results/fedavg-20261120-213315 --format latex")
def table(
    run_dir: RunDir,
    form: Annotated[
        str, typer.Option("--format", metavar="KIND", help="text, markdown or latex (booktabs).")
    ] = "text",
    classes: Annotated[
        bool, typer.Option("--classes", help="A row a class of the server's test set.")
    ] = False,
) -> None:
    """Print the table of a run, or of a comparison, again; also for a paper.

    With --classes of a run: how good the model is at each class.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form!r}: not one of {', '.join(FORMATS)}")
    folder = find_run(run_dir)
    if classes:
        _print_classes(folder, form)
        return
    if (folder / "comparison.toml").is_file():
        _print_comparison(folder, form)
        return
    lines = read_rounds(folder)
    if not lines:
        raise ResultsError(f"{run_dir}: no round is done yet; wait for round 0")
    if form == "text":
        print_table(lines)
    else:
        say_lines(write_rounds(lines, form).rstrip("\n"))


def _print_classes(folder: Path, form: str) -> None:
    found = kept_classes(folder, read_rounds(folder))
    if found is None:
        raise ConfigError(
            f"--classes: {folder} has no results by class; a run has them that classifies and has "
            "a test set of the server's (data.test-source)"
        )
    if form == "text":
        print_classes(found)
    else:
        say_lines(write_classes(found, form).rstrip("\n"))


def _print_comparison(folder: Path, form: str) -> None:
    from fedmoe_app.compare.compare import report
    from fedmoe_app.compare.paper import paper_table, write_table
    from fedmoe_app.compare.reading import read_comparison
    from fedmoe_app.compare.tables import print_summary

    found = read_comparison(folder)
    if form == "text":
        _, rows, metric = report(found.plan, found.outcomes)
        print_summary(found.plan, rows, metric)
    else:
        say_lines(write_table(paper_table(found), form).rstrip("\n"))
