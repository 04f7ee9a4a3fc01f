"""``fedmoe preview``: examples as the model sees them."""

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


@command("fedmoe preview -c experiments/instructions.toml")
def preview(
    examples: Annotated[int, typer.Option(min=1, help="Examples to show.")] = 3,
    data_path: Annotated[
        Path | None,
        typer.Option(help="A node's own file, in place of data.source.", show_default=False),
    ] = None,
    app_dir: AppOption = Path("."),
    run_config: RunConfigItems = None,
    online: Online = False,
) -> None:
    """Show training examples as the model sees them: what is learnt, and what is cut.

    The model's tokenizer and config are read, not its weights.
    """
    allow_downloads(online)
    config = checked_config(app_dir, run_config)
    # It takes long to import: what is wrong with the config is said before.
    from fedmoe_app.cli.preview import preview_of, print_preview

    print_preview(preview_of(config, examples, data_path), console())
