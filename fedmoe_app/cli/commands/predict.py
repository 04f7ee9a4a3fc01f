"""``fedmoe predict``: classes of new texts by a run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import RunDir, console
from fedmoe_app.results.finding import find_run
from fedmoe_app.shown.terminal import say


@command('fedmoe predict RUN "the boat sails to the harbour"')
def predict(
    run_dir: RunDir,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT...]", help="Texts; without any, one a line of the input."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A data file with the run's text column, or one text a line."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each text.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a text, with all probabilities.")
    ] = False,
) -> None:
    """Classify texts by the model of a run, with probabilities."""
    from fedmoe_app.cli import predict as predicting
    from fedmoe_app.server.saved import open_trained

    trained = open_trained(find_run(run_dir))
    given = predicting.texts_of(texts or (), file, trained.config.data)
    found = trained.probabilities(given)
    if as_json:
        for line in predicting.as_json(given, trained.label_names, found):
            say(line)
    else:
        console().print(predicting.as_table(given, trained.label_names, found, top))
