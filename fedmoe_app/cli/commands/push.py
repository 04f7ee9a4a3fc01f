"""``fedmoe push``: a run's model to a model hub."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import Online, RunDir, allow_downloads
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.terminal import say


@command("fedmoe push RUN my-name/my-model --dry-run")
def push(
    run_dir: RunDir,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the model hub.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The PEFT adapter alone, not the whole model.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is for everybody to see.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be sent; needs no network.")
    ] = False,
    online: Online = False,
) -> None:
    """Send a run's model with its card to a model hub; nothing else of the run is sent."""
    allow_downloads(online)  # before the hub's library is imported, which reads it
    from fedmoe_app.cli import push as pushing

    folder = pushing.folder_to_send(find_run(run_dir), adapter)
    pushing.check_repository(repository)
    files = pushing.files_of(folder)
    for file in files:
        say(f"{human_bytes(file.size):>10}  {file.name}")
    total = human_bytes(sum(file.size for file in files))
    kind = "public" if public else "private"
    say(f"{len(files)} files, {total}, to {repository} ({kind} if it is new)")
    if dry_run:
        return
    if not online:
        raise ConfigError(
            "nothing was sent: a push needs --online (--dry-run only lists what would be sent)"
        )
    say(pushing.push(folder, repository, public))
