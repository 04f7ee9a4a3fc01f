"""The ``fedmoe`` command: run the app with Flower, show what a run left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.config import ConfigError
from fedmoe_app.launching import environment
from fedmoe_app.launching.connections import LaunchError
from fedmoe_app.launching.overrides import read_overrides
from fedmoe_app.launching.processes import signals_raise
from fedmoe_app.launching.runner import RunFailedError, run_on_connection, run_simulated
from fedmoe_app.report.log import ResultsError, read_metrics
from fedmoe_app.report.table import print_table

DEFAULT_CLIENTS = 8

app = typer.Typer(
    name="fedmoe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated fine-tuning of Mixture-of-Experts language models.",
)

AppDir = Annotated[Path, typer.Argument(help="Folder of the Flower app.")]
RunDir = Annotated[Path, typer.Argument(help="Result folder of a run.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Run the command line; an expected error is one paragraph and exit code 1 or 2."""
    try:
        with signals_raise(signal.SIGTERM, signal.SIGHUP):
            app()
    except (ConfigError, ResultsError, LaunchError, RunFailedError) as error:
        if "--debug" in sys.argv:
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


@app.command()
def run(
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
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config",
            "-c",
            metavar="FILE.toml | 'KEY=VALUE ...'",
            help="Run config over the app's defaults; repeat it, later ones win.",
        ),
    ] = None,
    scheme: Annotated[str | None, typer.Option(help="Short for -c 'scheme=\"...\"'.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Short for -c 'num-server-rounds=...'.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.", show_default="$FEDMOE_HOME/results"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder of this run in it.", show_default="SCHEME-TIME")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Allow downloads from the model hub.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Flower's and Ray's own lines, too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune federatedly: `flwr run` with checks before and a table after it."""
    if connection and (clients or gpus):
        raise ConfigError("--clients and --gpus are for simulated nodes; leave out CONNECTION")
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    given: dict[str, str | int | None] = {
        "scheme": scheme,
        "num-server-rounds": rounds,
        "output-dir": str(output.expanduser().absolute()) if output else None,
        "run-name": name,
    }
    overrides = read_overrides(run_config or [])
    overrides |= {key: value for key, value in given.items() if value is not None}
    if connection:
        run_on_connection(app_dir, overrides, connection, verbose)
    else:
        run_simulated(app_dir, overrides, clients or DEFAULT_CLIENTS, gpus, verbose)


@app.command()
def table(run_dir: RunDir, debug: Debug = False) -> None:
    """Print the table of a run again."""
    print_table(read_metrics(run_dir))


@app.command()
def plot(run_dir: RunDir, debug: Debug = False) -> None:
    """Draw the pictures of a run again."""
    # matplotlib takes a second to import
    from fedmoe_app.report.plots import plot_run

    for path in plot_run(run_dir):
        print(path)


@app.command()
def stop() -> None:
    """End the SuperLink that `flwr run .` left running in the background."""
    count = environment.stop_local_superlinks(_flwr_home())
    print(f"{count} SuperLink ended" if count else "no SuperLink of this checkout is running")


@app.command(hidden=True)
def hook(
    flwr_home: Annotated[Path, typer.Argument(help="Folder for Flower's configuration.")],
    clients: Annotated[int, typer.Option(min=1)] = DEFAULT_CLIENTS,
) -> None:
    """Write the run environment into this virtual environment (`make install` does)."""
    print(environment.install_hook(flwr_home, clients))


def _flwr_home() -> Path:
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


if __name__ == "__main__":
    main()
