"""``fedmoe plot``: the pictures of a run."""

from __future__ import annotations

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import read_rounds
from fedmoe_app.shown.terminal import say


@command("fedmoe plot ~/.fedmoe/results/fedavg-20261120-213315")
def plot(run_dir: RunDir) -> None:
    """Draw the pictures of a run again."""
    # matplotlib takes a second to import
    from fedmoe_app.report.plots import plot_run

    folder = find_run(run_dir)
    read_rounds(folder)
    for path in plot_run(folder):
        say(path)
