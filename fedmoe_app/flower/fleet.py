"""How nodes reach a SuperLink: what each line of Flower's releases must tell about it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedmoe_app.flower.release import speaks_http

CONTROL_PORT = 8000  # of `flwr` and the SuperExec, in all releases


class UnreachableError(RuntimeError):
    """The SuperLink does not answer, so that nothing is known of its clock."""


class ClockProbe(Protocol):
    """Calls of a node that nobody knows, signed with times of our choice."""

    def accepts(self, moment: str, seconds: float) -> bool:
        """Tell whether the SuperLink accepts this time.

        Args:
            moment: the time, in ISO format with its zone.
            seconds: to wait for the answer.

        Raises:
            UnreachableError: it does not answer in time.
        """


class Fleet(Protocol):
    """The way of one line of releases.

    Attributes:
        node_port: the port that nodes connect to unless told otherwise.
    """

    node_port: int

    def listen_options(self, host: str, port: int, node_port: int) -> list[str]:
        """Return the options of ``flower-superlink`` for where it listens.

        Args:
            host: address that nodes are to reach; in brackets if it is one of IPv6.
            port: of the Control API.
            node_port: of the nodes, where they have one of their own.
        """

    def port_for_nodes(self, port: int, node_port: int) -> int:
        """Return the one of those two ports that nodes connect to."""

    def can_be_asked(self, arguments: Sequence[str]) -> bool:
        """Tell whether :meth:`clock_probe` knows the transport of a SuperNode with these."""

    def clock_probe(
        self, superlink: str, root_certificates: bytes | None, insecure: bool
    ) -> AbstractContextManager[ClockProbe]:
        """Open a connection to a SuperLink.

        Args:
            superlink: ``HOST:PORT`` that its nodes connect to.
            root_certificates: its CA in PEM; None for those of the system.
            insecure: it has no TLS.
        """

    def refusal(self, error: BaseException) -> str:
        """Return what the SuperLink said if this error is that it turned a node away; else ""."""

    def ends_by_itself(self, error: BaseException) -> bool:
        """Tell whether Flower ends a SuperNode whose heartbeats ended with this error."""


def fleet() -> Fleet:
    """Return the way of the installed release."""
    if speaks_http():
        from fedmoe_app.flower.http_fleet import HttpFleet

        return HttpFleet()
    from fedmoe_app.flower.grpc_fleet import GrpcFleet

    return GrpcFleet()


def refusal_in(end: BaseException) -> str:
    """Return what the SuperLink said when Flower ended the process because of it; else ""."""
    way = fleet()
    return next((said for error in _chain(end) if (said := way.refusal(error))), "")


def node_time() -> datetime.datetime:
    """Return the time that a SuperNode on this machine signs its calls with."""
    from flwr.supercore import date

    return date.now()


def certificates_of(path: Path | None) -> bytes | None:
    """Return the content of a CA's file, ``~`` allowed; None without one."""
    return path.expanduser().read_bytes() if path else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__
