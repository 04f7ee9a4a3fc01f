"""``fedmoe inspect``: a model's MoE layers and sizes."""

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


@command("fedmoe inspect qwen3moe-tiny -c 'model.train=\"expert-lora\"'")
def inspect(
    model: Annotated[str, typer.Argument(help="A preset, a local folder or a hub name.")],
    app_dir: AppOption = Path("."),
    run_config: RunConfigItems = None,
    online: Online = False,
) -> None:
    """Show a model's MoE layers and sizes, and what a run would train and send of it.

    Only the model's config is read, not its weights.
    """
    from fedmoe_app.cli.inspect import inspect_model, print_outline

    allow_downloads(online)
    config = checked_config(app_dir, run_config, {"model.name": model})
    print_outline(config, inspect_model(config), console())
