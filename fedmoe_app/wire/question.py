"""Which message a reply answers: run, round, and how often the state that was sent had been folded.

Every message of a run names the three, and every reply repeats them. So a reply that was made for
another round, state or run is told from the one that was asked for, whatever else it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.errors import InvalidUpdateError

RECORD = "update"  # the record of a reply that repeats them
RUN, ROUND, STATE = "run", "round", "state"  # entries there
ENTRIES = {RUN: str, ROUND: int, STATE: int}  # and their types
TASK_ROUND, TASK_RUN, TASK_STATE = "server-round", "run-key", "state-version"  # in the record task


@dataclass(frozen=True)
class Question:
    """What a message asked about.

    Attributes:
        server_round: of the message.
        run_key: names the run; the same after a resume.
        state_version: folds before the state that was sent.
    """

    server_round: int = 0
    run_key: str = "0" * 32
    state_version: int = 0

    @classmethod
    def of(cls, content: RecordDict) -> Question:
        """Read it off the content of a message to a client; what is not there has its default."""
        task: Any = content.config_records.get("task", ConfigRecord())
        return cls(
            int(task.get(TASK_ROUND, cls.server_round)),
            str(task.get(TASK_RUN, cls.run_key)),
            int(task.get(TASK_STATE, cls.state_version)),
        )

    @property
    def name(self) -> str:
        """Names the question in what both sides derive from it."""
        return f"{self.run_key} {self.server_round} {self.state_version}"

    def task(self) -> dict[str, Any]:
        """Return the entries that a message to a client has in its record ``task``."""
        return {
            TASK_ROUND: self.server_round,
            TASK_RUN: self.run_key,
            TASK_STATE: self.state_version,
        }

    def answer(self) -> dict[str, Any]:
        """Return the entries that a reply has in its record ``update``."""
        return {RUN: self.run_key, ROUND: self.server_round, STATE: self.state_version}

    def check(self, header: Mapping[str, Any]) -> None:
        """Refuse a reply to another message.

        Args:
            header: the record ``update`` of the reply.

        Raises:
            InvalidUpdateError: of kind ``replay``.
        """
        wanted = self.answer()
        found = {name: header.get(name) for name in wanted}
        if any(type(found[name]) is not ENTRIES[name] for name in wanted) or found != wanted:
            raise InvalidUpdateError(
                f"it answers {_described(found)}; asked was {_described(wanted)}", "replay"
            )


def _described(entries: Mapping[str, Any]) -> str:
    # The key's first digits tell runs apart.
    run = entries[RUN]
    key = shown(run[:8] if isinstance(run, str) else run)
    return f"round {shown(entries[ROUND])} of run {key}, state {shown(entries[STATE])}"
