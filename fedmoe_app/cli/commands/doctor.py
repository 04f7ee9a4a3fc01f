"""``fedmoe doctor``: what works on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.cli.options import console
from fedmoe_app.config.hosts import check_address


@command("fedmoe doctor")
def doctor(
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="SuperLink to compare this clock with."),
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="Its CA certificate; without it, it has no TLS.")
    ] = None,
) -> None:
    """Say what works on this machine, what does not, and how to mend it."""
    from fedmoe_app.cli.doctor import FAILURE, examine, print_findings

    if superlink:
        check_address(superlink, "--superlink")
    findings = examine(superlink or "", root_certificates)
    print_findings(findings, console())
    if any(finding.state == FAILURE for finding in findings):
        raise typer.Exit(1)
