"""``fedmoe resume RUN``: go on with a run as it was started, from its newest checkpoint."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import (
    MaxResumes,
    Online,
    Rounds,
    RunConfigItems,
    Verbose,
    allow_downloads,
)
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import Flat, read_overrides
from fedmoe_app.launch.app_folder import app_folder
from fedmoe_app.launch.launched import Launch, read_launch
from fedmoe_app.launch.resume import check_resumable, clients_to_resume, config_to_resume
from fedmoe_app.launch.resuming import MAX_RESUMES
from fedmoe_app.launch.runner import run_on_connection, run_simulated
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import STILL_RUNNING, ResultsError, results_of
from fedmoe_app.results.status import is_running, read_status


@command("fedmoe resume fedavg-20261120-213315")
def resume(
    run_dir: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Name or result folder of a run, or one of its checkpoints to go on from.",
        ),
    ],
    connection: Annotated[
        str | None,
        typer.Argument(
            help="SuperLink connection of your Flower configuration.",
            show_default="as it was started",
        ),
    ] = None,
    run_config: RunConfigItems = None,
    rounds: Rounds = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="Simulated nodes.", show_default="as it was started"),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Share of a GPU that a simulated node gets.",
            show_default="as it was started",
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPUs that a simulated node gets.", show_default="as it was started"
        ),
    ] = None,
    app_dir: Annotated[
        Path | None,
        typer.Option("--app", help="Folder of the Flower app.", show_default="as it was started"),
    ] = None,
    max_resumes: MaxResumes = MAX_RESUMES,
    online: Online = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run that ended before its last round, as it was started."""
    overrides = read_overrides(run_config or [])
    overrides |= {"num-server-rounds": rounds} if rounds is not None else {}
    resume_run(
        Request(
            run_dir,
            overrides,
            app=app_dir,
            connection=connection or "",
            clients=clients,
            gpus=gpus,
            cpus=cpus,
            online=online,
            verbose=verbose,
            max_resumes=max_resumes,
        )
    )


@dataclass(frozen=True)
class Request:
    """What the command line says; where it says nothing, what the run was started with holds.

    Attributes:
        run: result folder, one of its checkpoints, or the name of a run.
        overrides: run config that is to change.
        app, connection, clients, gpus, cpus, online: as of ``fedmoe run``.
        verbose: show Flower's and Ray's own lines, too.
        max_resumes: of the run, if it is lost again.
    """

    run: str
    overrides: Flat
    app: Path | None = None
    connection: str = ""
    clients: int | None = None
    gpus: float | None = None
    cpus: int | None = None
    online: bool = False
    verbose: bool = False
    max_resumes: int = 0


def resume_run(request: Request) -> None:
    """Go on with a run.

    Raises:
        ResultsError: no such run here, or it is still running.
        ConfigError: nothing to go on from, or it cannot be told where its nodes are.
    """
    path = _path_of(request)
    if is_running(results_of(path)):
        raise ResultsError(f"resume {request.run}: {STILL_RUNNING}; stop it first")
    launch = read_launch(results_of(path))
    connection = request.connection or (launch.connection if launch else "")
    if not connection and launch is None:
        _check_simulated(results_of(path))
    allow_downloads(request.online or bool(launch and launch.online))
    overrides = config_to_resume(path) | request.overrides
    app = _app_of(request, launch)
    if connection:
        _check_for_connection(request)
        run_on_connection(app, overrides, connection, request.verbose, request.max_resumes)
        return
    check_resumable(path)
    nodes = launch or Launch(str(app))
    clients = clients_to_resume(path, request.clients) or nodes.clients
    if not clients:
        raise ConfigError(f"resume {request.run}: of how many clients? give --clients")
    gpus = nodes.gpus if request.gpus is None else request.gpus
    cpus = nodes.cpus if request.cpus is None else request.cpus
    run_simulated(app, overrides, clients, gpus, request.verbose, cpus, request.max_resumes)


def _path_of(request: Request) -> Path:
    """Find the run; on a connection an absolute path may be one of the SuperLink's machine."""
    path = Path(request.run)
    if request.connection and path.is_absolute() and not path.exists():
        return path
    return find_run(request.run)


def _app_of(request: Request, launch: Launch | None) -> Path:
    if request.app is not None:
        return app_folder(request.app)
    if launch is not None and Path(launch.app).is_dir():
        return Path(launch.app)
    return app_folder(Path("."))


def _check_for_connection(request: Request) -> None:
    if request.clients or request.gpus or request.cpus:
        raise ConfigError("--clients, --gpus and --cpus are for simulated nodes")


def _check_simulated(results: Path) -> None:
    """Refuse to guess where the nodes of a run are that `flwr run` started.

    Raises:
        ConfigError: unless its status tells that they were simulated.
    """
    with suppress(ResultsError):
        if read_status(results).get("simulated", True):
            return
    raise ConfigError(
        f"resume {results}: its nodes are those of a SuperLink, and `flwr run` started it; name "
        "the connection: fedmoe resume RUN CONNECTION"
    )
