"""Options and arguments that several commands take, and what they do with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmoe_app.config.overrides import app_defaults, check, read_overrides, with_absolute_paths
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.launch.app_folder import app_folder
from fedmoe_app.results.table import LOG_WIDTH
from fedmoe_app.shown.terminal import Console

DEFAULT_CLIENTS = 8

AppDir = Annotated[Path, typer.Argument(help="Folder of the Flower app.")]
AppOption = Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")]
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
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show Flower's and Ray's own lines, too.")
]


def allow_downloads(online: bool) -> None:
    """Let this process and those that it starts load from the model hub, if ``online``."""
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"


def checked_config(
    app_dir: Path, items: list[str] | None, more: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the app's defaults with ``--run-config`` and ``more`` over them.

    Raises:
        ConfigError: naming what is wrong with it.
    """
    flat = app_defaults(app_folder(app_dir)) | read_overrides(items or []) | dict(more or {})
    return check(with_absolute_paths(flat, Path.cwd()), None)


def console() -> Console:
    """Return a console of the terminal's width; of a log's where the output is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=LOG_WIDTH)
