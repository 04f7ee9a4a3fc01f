"""``fedmoe export``: a run's model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.results.finding import find_run
from fedmoe_app.shown.terminal import say


@command("fedmoe export RUN --format peft --output my-adapter")
def export(
    run_dir: Annotated[Path, typer.Argument(help="Result folder of a run, or the run's name.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: the whole model, adapters merged; peft: the adapter alone; vllm, llama.cpp: "
            "the whole model in a form that the program computes as it is.",
        ),
    ] = "hf",
    output: Annotated[
        Path | None,
        typer.Option(help="New folder.", show_default="RUN-FORMAT in this folder"),
    ] = None,
) -> None:
    """Copy a run's model to a folder that transformers, PEFT, vLLM or llama.cpp loads."""
    from fedmoe_app.cli.export import export as export_run
    from fedmoe_app.cli.export import read_format, source_of

    chosen = read_format(kind)
    run_dir = find_run(run_dir)
    target = (output or Path(f"{run_dir.name}-{chosen}")).expanduser().absolute()
    say(f"from {source_of(run_dir, chosen)}")
    say(export_run(run_dir, chosen, target))
