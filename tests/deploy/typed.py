"""Commands as they are typed, in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from fedmoe_app.cli.main import app


def fedmoe(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
