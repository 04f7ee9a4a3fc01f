"""``fedmoe new``: a project of one's own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.shown.terminal import say, say_lines


@command("fedmoe new my-moe")
def new(
    folder: Annotated[Path, typer.Argument(help="A new folder; its name is the project's.")],
    publisher: Annotated[
        str, typer.Option(metavar="NAME", help="Whose app it is, for Flower.")
    ] = "me",
) -> None:
    """Begin a project of one's own: a scheme, its tests, a run config and a Makefile."""
    from fedmoe_app.cli.new import write_project

    project = write_project(folder, publisher)
    say(f"written: {folder}")
    say(f"  {project.package}/scheme.py    the scheme: change it into your own")
    say_lines(f"next: cd {folder}; make short; make test{_path_hint()}")


def _path_hint() -> str:
    """Say how the Makefile finds ``fedmoe``, where it does not lie on the path."""
    if shutil.which("fedmoe"):
        return ""
    programs = Path(sys.executable).parent
    return f"\nfedmoe is not on the path; make it known: export PATH={programs}:$PATH"
