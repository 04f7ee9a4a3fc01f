"""The ``fedmoe`` command line, to which each command of :mod:`fedmoe_app.cli.commands` adds itself.

``--debug`` is an option of ``fedmoe`` itself, and taken after the command, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

_F = TypeVar("_F", bound=Callable[..., None])


@dataclass
class Invocation:
    """What ``fedmoe`` itself was told.

    Attributes:
        debug: show the traceback of an error.
    """

    debug: bool = False


def _debug_option(hidden: bool) -> TyperOption:
    def note(context: click.Context, _: click.Parameter, given: bool | None) -> None:
        if given:
            context.ensure_object(Invocation).debug = True

    return TyperOption(
        param_decls=["--debug"],
        is_flag=True,
        expose_value=False,
        hidden=hidden,
        callback=note,
        help="Show tracebacks.",
    )


class _Root(TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.params.append(_debug_option(hidden=False))


class _Command(TyperCommand):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_debug_option(hidden=True))


app = typer.Typer(
    name="fedmoe",
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated fine-tuning of Mixture-of-Experts language models.",
)


def command(example: str, on: typer.Typer = app, **options: Any) -> Callable[[_F], _F]:
    """Put a function on the command line, under its own name.

    Args:
        example: a line that can be typed; shown at the end of the command's help.
        on: the group that it belongs to.
        options: of :meth:`typer.Typer.command`.
    """
    return on.command(cls=_Command, epilog=f"Example: {example}", **options)
