"""Callbacks: who is told how a run goes on. One list of them stands for all observers.

Each entry of the list is called in the order of the list, in the server's thread, and whatever it
raises ends the run: an entry that must not cost the run catches its own faults.

An observer of one's own is one class with the methods that it needs, added to the list in
:mod:`fedmoe_app.server.recorder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundRecord


class Callback:
    """Does nothing when it is told of something; a callback overrides what it wants to hear of.

    A run calls ``on_start`` and ``on_end`` once. Between them a round is one ``on_ask``, an
    ``on_reply`` or ``on_failure`` for each client, and one ``on_round``.
    """

    def on_start(self, num_rounds: int) -> None:
        """The run begins, or goes on; it has so many rounds in all."""

    def on_ask(self, server_round: int, num_asked: int) -> None:
        """So many clients are asked to train; again if the round has to be repeated."""

    def on_reply(self, who: str, metrics: Mapping[str, Any]) -> None:
        """A training reply is good, as far as one reply alone can tell."""

    def on_failure(self, who: str, reason: str) -> None:
        """A client (``client 3`` or ``node 812``) failed, or the round (``round``)."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is over; round 0 is the initial model."""

    def on_end(self, error: BaseException | None) -> None:
        """The run is over.

        Args:
            error: why it did not complete; a
                :class:`~fedmoe_app.results.lease.TakenOverError` if another process goes on with
                it, so that nothing may be written any more.
        """
