"""``fedmoe chat``: a conversation with a run's model."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir
from fedmoe_app.results.finding import find_run


@command('fedmoe chat RUN --system "Answer in one sentence."')
def chat(
    run_dir: RunDir,
    message: Annotated[
        str | None,
        typer.Option(help="Ask this alone, and end.", show_default="a conversation, line by line"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before all others.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of an answer at most.", show_default="the run's"),
    ] = None,
) -> None:
    """Talk to the language model of a run, laid out as in its training."""
    from fedmoe_app.cli.chat import talk
    from fedmoe_app.server.saved import open_trained

    talk(open_trained(find_run(run_dir)), message, system, max_new_tokens)
