"""``fedmoe run``: fine-tune federatedly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.misplaced import overrides_of
from fedmoe_app.cli.options import (
    DEFAULT_CLIENTS,
    AppDir,
    MaxResumes,
    Online,
    Rounds,
    RunConfigItems,
    Verbose,
    allow_downloads,
)
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.launch.app_folder import app_folder
from fedmoe_app.launch.resume import check_resumable, clients_to_resume, config_to_resume
from fedmoe_app.launch.resuming import MAX_RESUMES
from fedmoe_app.launch.runner import run_on_connection, run_simulated
from fedmoe_app.results.finding import find_run


@command(
    "fedmoe run . --clients 10 --scheme fedmoe -c 'data.alpha=0.1'",
    context_settings={"allow_extra_args": True},
)
def run(
    context: typer.Context,
    app_dir: AppDir = Path("."),
    connection: Annotated[
        str | None,
        typer.Argument(
            help="SuperLink connection of your Flower configuration. Without it, the nodes are "
            "simulated on this machine.",
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="Simulated nodes.", show_default=str(DEFAULT_CLIENTS)),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0.0, help="Share of a GPU that a simulated node gets.")
    ] = 0.0,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPUs that a simulated node gets; more of them, fewer nodes at once.",
            show_default="train.threads",
        ),
    ] = None,
    run_config: RunConfigItems = None,
    scheme: Annotated[str | None, typer.Option(help="Short for -c 'scheme=\"...\"'.")] = None,
    rounds: Rounds = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.", show_default="$FEDMOE_HOME/results"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder of this run in it.", show_default="SCHEME-TIME")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run of this result folder, with its run config (-c changes it)."
        ),
    ] = None,
    max_resumes: MaxResumes = MAX_RESUMES,
    online: Online = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune federatedly: `flwr run` with checks before and a table after it."""
    if connection and (clients or gpus or cpus):
        raise ConfigError(
            "--clients, --gpus and --cpus are for simulated nodes; leave out CONNECTION"
        )
    if resume and "/" not in str(resume):
        resume = find_run(resume)
    if resume and not connection:
        check_resumable(resume)
    allow_downloads(online)
    given: dict[str, str | int | None] = {
        "scheme": scheme,
        "num-server-rounds": rounds,
        "output-dir": str(output.expanduser().absolute()) if output else None,
        "run-name": name,
    }
    overrides = config_to_resume(resume) if resume else {}
    overrides |= overrides_of("run", run_config, app_dir, connection, context.args)
    overrides |= {key: value for key, value in given.items() if value is not None}
    if connection:
        run_on_connection(app_folder(app_dir), overrides, connection, verbose, max_resumes)
    else:
        clients = clients_to_resume(resume, clients) if resume else clients
        nodes = clients or DEFAULT_CLIENTS
        run_simulated(app_folder(app_dir), overrides, nodes, gpus, verbose, cpus, max_resumes)
