"""``fedmoe table``: a row a round."""

from __future__ import annotations

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.results.table import print_table


@command("fedmoe table ~/.fedmoe/results/fedavg-20261120-213315")
def table(run_dir: RunDir) -> None:
    """Print the table of a run again."""
    lines = read_rounds(find_run(run_dir))
    if not lines:
        raise ResultsError(f"{run_dir}: no round is done yet; wait for round 0")
    print_table(lines)
