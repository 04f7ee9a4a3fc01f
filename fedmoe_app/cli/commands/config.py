"""``fedmoe config``: every key of the run config, one of them, or the files made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.reference import explain, stale, toml_block
from fedmoe_app.shown.terminal import say, say_lines


@command("fedmoe config data.alpha")
def config(
    key: Annotated[
        str | None,
        typer.Argument(help="A key or a table to explain.", show_default="all of them"),
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Write all defaults anew into the app's pyproject.toml, and the reference page.",
        ),
    ] = False,
    app_dir: Annotated[Path, typer.Option("--app", help="Folder of the Flower app.")] = Path("."),
) -> None:
    """Show the keys of the run config: defaults, values, what they do."""
    if write and key:
        raise ConfigError(f"--write with {key}: it writes all keys; name the app by --app {key}")
    if write:
        _write(app_dir)
    else:
        say_lines(explain(key) if key else toml_block().rstrip())


def _write(app: Path) -> None:
    found = stale(app)
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")
        say(f"written: {path}")
    if not found:
        say("nothing to write: the files say what the code says")
