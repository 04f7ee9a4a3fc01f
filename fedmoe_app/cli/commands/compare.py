"""``fedmoe compare``: schemes over the same partitions and seeds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.misplaced import overrides_of
from fedmoe_app.cli.options import (
    DEFAULT_CLIENTS,
    AppDir,
    Online,
    Rounds,
    RunConfigItems,
    allow_downloads,
)
from fedmoe_app.launch.runner import INTERRUPTED
from fedmoe_app.shown.terminal import say


@command("fedmoe compare --schemes fedavg,fedalign --seeds 1,2,3 --clients 10")
def compare(
    app_dir: AppDir = Path("."),
    schemes: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME,...",
            help="Rows: names, package.module:Class, or TOML files whose keys are laid over the "
            "shared ones; alone: every client trains by itself. The others are held against the "
            "first.",
            show_default="those with a table of their own in the run config",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,...", help="Runs of each cell.")] = "1,2,3",
    alphas: Annotated[
        str | None,
        typer.Option(
            metavar="X,...",
            help="Columns: Dirichlet partitions.",
            show_default="the run config's own partition",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=X,Y",
            help="Try these values for every row, choose by validation rows (keep-best), and run "
            "--seeds with what was chosen; repeat it for all combinations.",
        ),
    ] = None,
    tuning_seeds: Annotated[
        str, typer.Option(metavar="N,...", help="Seeds of the runs that --grid tries.")
    ] = "101",
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = DEFAULT_CLIENTS,
    rounds: Rounds = None,
    run_config: RunConfigItems = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the comparison. Finished runs in it are kept and used again.",
            show_default="$FEDMOE_HOME/results/compare-HASH",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, one process each.")] = 2,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Each run through `flwr run`, one at a time.")
    ] = False,
    no_centralised: Annotated[
        bool, typer.Option("--no-centralised", help="Leave the centralised reference out.")
    ] = False,
    online: Online = False,
) -> None:
    """Run schemes over the same partitions and seeds; tables and plots with intervals."""
    from fedmoe_app.compare import compare as comparing

    allow_downloads(online)
    own_seeds = comparing.read_seeds(seeds)
    request = comparing.Request(
        app=app_dir,
        schemes=comparing.read_schemes(",".join(comparing.SCHEMES) if schemes is None else schemes),
        seeds=own_seeds,
        alphas=comparing.read_alphas(alphas) if alphas is not None else (),
        clients=clients,
        overrides=overrides_of("compare", run_config, app_dir),
        rounds=rounds,
        output=output,
        workers=workers,
        simulation=simulation,
        centralised=not no_centralised,
        grid=comparing.read_grid(
            grid or (), comparing.read_seeds(tuning_seeds, "--tuning-seeds"), own_seeds
        ),
        command=shlex.join(["fedmoe", *sys.argv[1:]]),
    )
    try:
        complete = comparing.compare(request)
    except KeyboardInterrupt:
        say("interrupted; finished runs are kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if not complete:
        raise typer.Exit(1)
