"""One run from the command line: check the config, run, print the table and the folder."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import (
    Flat,
    app_defaults,
    check,
    with_absolute_paths,
    with_output_dir,
    with_run_name,
    with_template,
)
from fedmoe_app.config.parse import check_labels_known, flatten_run_config
from fedmoe_app.config.paths import home
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.launch import flower
from fedmoe_app.launch.app_folder import let_import
from fedmoe_app.launch.connections import find_connection
from fedmoe_app.launch.flower_release import check_release
from fedmoe_app.launch.launched import Launch, write_launch
from fedmoe_app.launch.live import Screen, open_screen
from fedmoe_app.launch.preflight import check_scheme_name, check_simulated
from fedmoe_app.launch.resources import check_cpus, check_gpus
from fedmoe_app.launch.resuming import MAX_RESUMES, Start, run_to_the_end
from fedmoe_app.results.folder import (
    METRICS_FILE,
    REPORT_FILE,
    ResultsError,
    holds_files,
    list_checkpoints,
    read_metrics,
    results_of,
)
from fedmoe_app.results.status import how_to_resume, note_interruption
from fedmoe_app.results.table import print_table
from fedmoe_app.results.trackers import require_trackers
from fedmoe_app.shown.terminal import say, say_lines
from fedmoe_app.shown.text import visible

LOG_FILE = "flower.log"
RESULTS = "results: "
INTERRUPTED = 130
STOP_SECONDS = 10.0  # that a ServerApp has to end after `flwr stop`


class RunFailedError(RuntimeError):
    """A run that did not come to its end; the message says what Flower knows."""


def run_simulated(
    app: Path,
    given: Flat,
    num_clients: int,
    gpus: float,
    verbose: bool,
    cpus: int | None = None,
    max_resumes: int = MAX_RESUMES,
) -> None:
    """Run on ``num_clients`` simulated nodes of this machine, as many at once as fit on it.

    Args:
        app: folder of the Flower app.
        given: run config over the app's defaults.
        num_clients: simulated nodes.
        gpus: share of a GPU, or whole GPUs, that a node gets.
        verbose: show Flower's and Ray's own lines, too.
        cpus: CPUs that a node gets; None for ``train.threads``.
        max_resumes: see :func:`fedmoe_app.launch.resuming.run_to_the_end`.

    Raises:
        ConfigError: for a wrong run config, or more than this machine has, before anything is
            started.
        LaunchError: when Flower cannot be started.
        RunFailedError: when the run did not complete.
    """
    check_release()
    let_import(app)
    flat = with_absolute_paths(app_defaults(app) | given, Path.cwd())
    config = check(with_output_dir(with_run_name(flat, datetime.now())), num_clients)
    require_trackers(config.track)
    share = check_cpus(cpus, config.train.threads), check_gpus(gpus)
    check_simulated(config, num_clients)
    nodes = flower.Simulation(num_clients, *share)
    _execute(
        f"starting {num_clients} simulated nodes ...",
        lambda config, output: flower.run_simulation(
            app, flatten_run_config(config), nodes, output
        ),
        config,
        verbose,
        _launch(app, clients=num_clients, gpus=gpus, cpus=cpus),
        max_resumes,
    )


def run_on_connection(
    app: Path, given: Flat, name: str, verbose: bool, max_resumes: int = MAX_RESUMES
) -> None:
    """Run on the nodes of the SuperLink connection ``name``; raises as :func:`run_simulated`."""
    check_release()
    connection = find_connection(name)
    flat = with_template(app_defaults(app) | given, Path.cwd())
    flat = with_run_name(flat, datetime.now())
    # On another machine the ServerApp knows better where results belong.
    config = check(with_output_dir(flat) if connection.is_local else flat, None)
    check_scheme_name(config.scheme)
    check_labels_known(config.data)
    _execute(
        f"connecting to {name} ({connection.address}) ...",
        lambda config, output: flower.run_connected(
            app, flatten_run_config(config), connection, output
        ),
        config,
        verbose,
        _launch(app, connection=name),
        max_resumes,
    )


def _launch(app: Path, **fields: Any) -> Launch:
    return Launch(str(app.absolute()), online=os.environ.get("HF_HUB_OFFLINE") == "0", **fields)


def _execute(
    beginning: str,
    start: Start,
    config: RunConfig,
    verbose: bool,
    launch: Launch,
    max_resumes: int,
) -> None:
    folder = Path(config.output_dir) / config.run_name if config.output_dir else None
    if config.resume:
        folder = results_of(Path(config.resume))
    else:
        _refuse_used(folder)
        _refuse_unwritable(folder)
    say(beginning)  # nothing is refused any more
    log_path = home() / "logs" / f"{config.run_name}-{os.getpid()}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with flower.open_log(log_path) as log, open_screen(folder, verbose) as screen:
            output = flower.Output(log, _noting(folder, launch, screen), verbose, screen.hear)
            outcome = run_to_the_end(start, config, folder, output, max_resumes)
    except KeyboardInterrupt:
        say_lines(f"interrupted; log: {visible(_keep_log(log_path, folder))}{_going_on(folder)}")
        if folder is not None:
            # The ServerApp of a simulation is gone, and had no time to; others take a few seconds.
            note_interruption(folder, patience=STOP_SECONDS if launch.connection else 0.0)
        _close_page(folder)
        raise typer.Exit(INTERRUPTED) from None
    log_path = _keep_log(log_path, folder)
    _show_table(screen, folder)
    if not outcome.completed:
        raise RunFailedError(_reason(outcome, log_path) + _going_on(folder))
    where = folder or screen.results or f"{config.run_name} in the SuperLink's result folder"
    say(f"{RESULTS}{where}")


def _noting(
    folder: Path | None, launch: Launch, show: Callable[[str], None]
) -> Callable[[str], None]:
    """Show lines; note how the run was started once its folder, if it is at hand, is there."""

    def noting(line: str) -> None:
        nonlocal folder
        if folder is not None and folder.is_dir():
            with suppress(OSError):
                write_launch(folder, launch)
            folder = None  # once
        show(line)

    return noting


def _refuse_used(folder: Path | None) -> None:
    if folder and holds_files(folder):
        raise ConfigError(
            f"run-name = {folder.name!r}: {folder} holds files of an earlier run; "
            "choose another name with --name, or go on with it: "
            f"fedmoe resume {shlex.quote(str(folder))}"
        )


def _refuse_unwritable(folder: Path | None) -> None:
    """Make the folder that the run's own will lie in, which shows whether it can be written."""
    if folder is None:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder.parent, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(
            f'output-dir = "{folder.parent}": {reason}; name a folder that can be written with '
            "--output, or set FEDMOE_HOME"
        )


def _keep_log(log_path: Path, folder: Path | None) -> Path:
    """Move the log to the results, if there are any, beside those of earlier parts of the run."""
    if folder is None or not folder.is_dir():
        return log_path
    kept, part = folder / LOG_FILE, 1
    while kept.exists():
        part += 1
        kept = folder / f"{kept.stem.partition('-')[0]}-{part}{kept.suffix}"
    try:
        return Path(shutil.move(log_path, kept))
    except OSError:  # a full disk: it stays where it is
        kept.unlink(missing_ok=True)
        return log_path


def _going_on(folder: Path | None) -> str:
    """Say how to resume, where this machine can see that there is something to resume."""
    if folder is None or not list_checkpoints(folder):
        return ""
    return f"\nto go on: {how_to_resume(folder)}"


def _close_page(folder: Path | None) -> None:
    """Let the page of a run that was stopped no longer say that it runs."""
    if folder and (folder / REPORT_FILE).is_file():
        # Where the command line runs alone there is no jinja2, and the page stays as it is.
        with suppress(ResultsError, OSError, ImportError):
            from fedmoe_app.report.run_page import write_run_page

            write_run_page(folder)


def _show_table(screen: Screen, folder: Path | None) -> None:
    """Print the table unless the ServerApp did."""
    if screen.table_shown or folder is None or not (folder / METRICS_FILE).is_file():
        return
    if lines := read_metrics(folder):
        print_table(lines)


def _reason(outcome: flower.Outcome, log_path: Path) -> str:
    details = f": {outcome.details}" if outcome.details else ""
    return visible(f"the run ended as {outcome.status}{details} (whole log: {log_path})")
