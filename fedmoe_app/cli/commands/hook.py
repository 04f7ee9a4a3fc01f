"""``fedmoe hook``: what `make flwr-hook` calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import DEFAULT_CLIENTS
from fedmoe_app.launch.environment import install_hook
from fedmoe_app.shown.terminal import say


@command("", hidden=True)
def hook(
    flwr_home: Annotated[Path, typer.Argument(help="Folder for Flower's configuration.")],
    clients: Annotated[int, typer.Option(min=1)] = DEFAULT_CLIENTS,
) -> None:
    """Set the run environment for every Python of this virtual environment (`make flwr-hook`)."""
    say(install_hook(flwr_home, clients))
