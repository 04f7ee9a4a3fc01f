"""``fedmoe partition``: how the data would be split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import (
    AppOption,
    Online,
    RunConfigItems,
    allow_downloads,
    checked_config,
    console,
)
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.launch.preflight import check_files
from fedmoe_app.shown.terminal import say


@command("fedmoe partition --clients 10 -c 'data.alpha=0.1'")
def partition(
    clients: Annotated[int, typer.Option(min=1, help="Clients to split over.")] = 8,
    app_dir: AppOption = Path("."),
    run_config: RunConfigItems = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Picture (.png, .svg or .pdf).",
            show_default="$FEDMOE_HOME/results/partition.png",
        ),
    ] = None,
    online: Online = False,
) -> None:
    """Show how the data would be split over clients: table and picture by client and label."""
    from fedmoe_app.cli.partition import describe_setting, plot_split, print_split, split_of
    from fedmoe_app.config.paths import results_dir

    allow_downloads(online)
    path = _picture_path(output or results_dir() / "partition.png")
    config = checked_config(app_dir, run_config)
    check_files(config.data)
    split = split_of(config, clients)
    say(describe_setting(config))
    print_split(split, console())
    say(f"picture: {plot_split(split, describe_setting(config), path)}")


def _picture_path(path: Path) -> Path:
    """Refuse a picture of a kind that cannot be drawn.

    Raises:
        ConfigError: naming the kinds.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--output {path}: give it one of the endings .png, .svg, .pdf")
    return path.expanduser().absolute()
