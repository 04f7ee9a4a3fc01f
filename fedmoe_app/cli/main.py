"""The ``fedmoe`` command: run the app with Flower, compare schemes, show what a run left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli import deploying, node
from fedmoe_app.cli.looking import register
from fedmoe_app.cli.misplaced import overrides_of
from fedmoe_app.cli.resume import Request, resume_run
from fedmoe_app.cli.status import newest_run, overview
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.launch import environment
from fedmoe_app.launch.app_folder import app_folder
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.processes import signals_raise
from fedmoe_app.launch.resume import check_resumable, clients_to_resume, config_to_resume
from fedmoe_app.launch.resuming import MAX_RESUMES
from fedmoe_app.launch.runner import INTERRUPTED, RunFailedError, run_on_connection, run_simulated
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.results.table import print_table
from fedmoe_app.shown.terminal import say, say_lines, say_whatever_the_encoding

DEFAULT_CLIENTS = 8

app = typer.Typer(
    name="fedmoe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated fine-tuning of Mixture-of-Experts language models.",
)

app.add_typer(node.app, name="node")

AppDir = Annotated[Path, typer.Argument(help="Folder of the Flower app.")]
RunDir = Annotated[Path, typer.Argument(help="Result folder of a run, or the run's name.")]
RunConfigItems = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config",
        "-c",
        metavar="FILE.toml | 'KEY=VALUE ...'",
        help="Run config over the app's defaults; repeat it, later ones win.",
    ),
]
Rounds = Annotated[int | None, typer.Option(help="Short for -c 'num-server-rounds=...'.")]
MaxResumes = Annotated[
    int,
    typer.Option(
        min=0, help="Resumes in a row of a run that is lost, at most, while it gets no further."
    ),
]
Online = Annotated[bool, typer.Option("--online", help="Allow downloads from the model hub.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Run the command line; an expected error is one paragraph and exit code 1 or 2."""
    say_whatever_the_encoding()
    try:
        with signals_raise(signal.SIGTERM, signal.SIGHUP):
            app()
    except (ConfigError, ResultsError, LaunchError, RunFailedError) as error:
        if "--debug" in sys.argv:
            raise
        sys.stdout.flush()
        # Only a run that failed has a second line, which says how to go on.
        (say_lines if isinstance(error, RunFailedError) else say)(f"error: {error}", sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        sys.stdout.flush()
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror or error}", sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if "--debug" in sys.argv:
            raise
        sys.stdout.flush()
        say(f"error: {_not_installed(error)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.stdout.flush()
        ours = isinstance(error, ValueError)  # wrong data or models explain themselves
        hint = "" if ours else f" ({type(error).__name__}; --debug shows where)"
        say_lines(f"error: {error}{hint}", sys.stderr)
        sys.exit(1)


def _not_installed(error: ModuleNotFoundError) -> str:
    """Explain a package that is missing, as torch is in the image of the command line alone."""
    return (
        f"this command needs the package {(error.name or '?').partition('.')[0]!r}, which is not "
        "installed here; run it where the whole app is: in an environment of `make install`, or "
        "in a container of the image fedmoe/app (--debug shows where it is needed)"
    )


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Example: fedmoe run . --clients 10 --scheme fedmoe -c 'data.alpha=0.1'",
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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's and Ray's own lines, too.")
    ] = False,
    debug: Debug = False,
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
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
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


@app.command(epilog="Example: fedmoe resume fedavg-20261120-213315")
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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's and Ray's own lines, too.")
    ] = False,
    debug: Debug = False,
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


@app.command(epilog="Example: fedmoe compare --schemes fedavg,fedalign --seeds 1,2,3 --clients 10")
def compare(
    app_dir: AppDir = Path("."),
    schemes: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME,...",
            help="Rows: names, package.module:Class, or TOML files whose keys are laid over the "
            "shared ones. The others are held against the first.",
            show_default="all built in",
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
    debug: Debug = False,
) -> None:
    """Run schemes over the same partitions and seeds; tables and plots with intervals."""
    from fedmoe_app.compare import compare as comparing

    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    request = comparing.Request(
        app=app_folder(app_dir),
        schemes=comparing.read_schemes(",".join(comparing.SCHEMES) if schemes is None else schemes),
        seeds=comparing.read_seeds(seeds),
        alphas=comparing.read_alphas(alphas) if alphas is not None else (),
        clients=clients,
        overrides=overrides_of("compare", run_config, app_dir),
        rounds=rounds,
        output=output,
        workers=workers,
        simulation=simulation,
        centralised=not no_centralised,
    )
    try:
        complete = comparing.compare(request)
    except KeyboardInterrupt:
        say("interrupted; finished runs are kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if not complete:
        raise typer.Exit(1)


@app.command(epilog="Example: fedmoe table ~/.fedmoe/results/fedavg-20261120-213315")
def table(run_dir: RunDir, debug: Debug = False) -> None:
    """Print the table of a run again."""
    lines = read_rounds(find_run(run_dir))
    if not lines:
        raise ResultsError(f"{run_dir}: no round is done yet; wait for round 0")
    print_table(lines)


@app.command(epilog="Example: fedmoe status")
def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            help="Result folder of a run, or the run's name.",
            show_default="the newest in $FEDMOE_HOME",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show how a run stands: rounds, clients, last metrics, failures, how to go on."""
    for line in overview(find_run(run_dir) if run_dir else newest_run()):
        say(line)


@app.command(epilog="Example: fedmoe plot ~/.fedmoe/results/fedavg-20261120-213315")
def plot(run_dir: RunDir, debug: Debug = False) -> None:
    """Draw the pictures of a run again."""
    # matplotlib takes a second to import
    from fedmoe_app.report.plots import plot_run

    folder = find_run(run_dir)
    read_rounds(folder)
    for path in plot_run(folder):
        say(path)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: fedmoe supernode --superlink lab1.example.org:9092 --root-certificates ca.crt "
    "--auth-supernode-private-key node-0 --node-config 'partition-id=0'",
)
def supernode(context: typer.Context) -> None:
    """Join a deployment: `flower-supernode` with its arguments, and clients that start quickly."""
    from fedmoe_app.launch.supernode import become_supernode

    become_supernode(context.args)


@app.command(epilog="Example: fedmoe superexec --runtime-api-address supernode:9094")
def superexec(
    runtime_api_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Runtime API of the SuperNode.")
    ],
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="CA of the Runtime API.", show_default="it has no TLS"),
    ] = None,
    health_server_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where `fedmoe health` finds out that it is ready."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the messages of a `fedmoe supernode --isolation process` that is in another container."""
    from fedmoe_app.launch.warm import start

    start(runtime_api_address, root_certificates, health_server_address)


@app.command(epilog="Example: fedmoe report ~/.fedmoe/results/fedavg-20261120-213315")
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
    debug: Debug = False,
) -> None:
    """Write report.html of a run or a comparison again, or hold several runs together."""
    from fedmoe_app.cli.report import write_report

    say(write_report(runs, output))


@app.command(epilog="Example: fedmoe stop")
def stop() -> None:
    """End the SuperLink that `flwr run .` left running in the background."""
    count = environment.stop_local_superlinks(environment.flwr_home())
    say(f"{count} SuperLink ended" if count else "no SuperLink of this checkout is running")


@app.command(hidden=True)
def hook(
    flwr_home: Annotated[Path, typer.Argument(help="Folder for Flower's configuration.")],
    clients: Annotated[int, typer.Option(min=1)] = DEFAULT_CLIENTS,
) -> None:
    """Write the run environment into this virtual environment (`make install` does)."""
    say(environment.install_hook(flwr_home, clients))


register(app)
deploying.add_to(app)


if __name__ == "__main__":
    main()
