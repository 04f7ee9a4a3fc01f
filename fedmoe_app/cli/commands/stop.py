"""``fedmoe stop``: end what `flwr run .` left running."""

from __future__ import annotations

from fedmoe_app.cli.app import command
from fedmoe_app.launch.environment import flwr_home, stop_local_superlinks
from fedmoe_app.shown.terminal import say


@command("fedmoe stop")
def stop() -> None:
    """End the SuperLink that `flwr run .` left running in the background."""
    count = stop_local_superlinks(flwr_home())
    say(f"{count} SuperLink ended" if count else "no SuperLink of this checkout is running")
