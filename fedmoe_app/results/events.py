"""What happens in a run, as typed events: written and read here, and nowhere else.

An event is told once (:func:`tell`) and goes three ways: as a readable line to the console, as a
JSON object to ``log.jsonl``, and, where ``fedmoe run`` follows the run, as a JSON object to the
output of the ServerApp, for the live screen. :func:`to_line` and :func:`from_line` are each other's
inverse, so that no program has to understand English lines.

Every line of ``log.jsonl`` has ``time`` (UTC), ``level``, ``run`` (the result folder's name),
``scheme``, ``event`` and ``message``; ``round``, ``client`` and ``node`` where the event has one,
and figures of its own. Nothing of a data row is ever in it: messages of clients name file, line,
row and column only.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter

from fedmoe_app.config.policy import REFUSED
from fedmoe_app.results.folder import append_text
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.logs import LineFormatter, json_line, log_line

logger = logging.getLogger("fedmoe")

LOG_FILE = "log.jsonl"
MAX_WAITING = 10_000  # lines that wait while the disk is full
MESSAGE = "message"  # the event of a line that has no type of its own
# Before the JSON of an event in the ServerApp's output, among the readable lines.
PREFIX = "fedmoe-event: "

WITHHELD = "withheld"  # among a reply's metrics: the key of the run by which the others stay away
EXAMPLE_DP, SECURE_SUM = "privacy.example-dp", "privacy.secure-sum"
_STAY = "how many examples, loss and accuracy stay on the node"
_CAME = {
    EXAMPLE_DP: f"changes with noise came; {_STAY} ({EXAMPLE_DP})",
    SECURE_SUM: f"a masked reply came; {_STAY} ({SECURE_SUM})",
}
_WHO = re.compile(r"(client|node) (\d+)")


# -- the events --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened; the fields are its figures."""

    kind: ClassVar[str] = MESSAGE
    level: ClassVar[int] = logging.INFO

    @property
    def text(self) -> str:
        """The line for the console; "" for an event that people need not read."""
        return _text(self)

    def figures(self) -> dict[str, Any]:
        """Return what ``log.jsonl`` holds of it beside kind and text."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class RoundStarted(Event):
    """Clients were asked to train."""

    kind = "round-started"
    round: int
    num_rounds: int
    asked: int


@dataclass(frozen=True)
class Replied(Event):
    """A client's reply was taken; ``answered`` of the ``asked`` have answered or failed."""

    kind = "reply"
    who: str
    metrics: Mapping[str, Any]
    answered: int = 0
    asked: int = 0
    left: str = ""  # estimate of the time that is left

    @property
    def summary(self) -> str:
        """What the client did, or why only that it replied is known."""
        if came := _CAME.get(str(self.metrics.get(WITHHELD))):
            return f"{self.who}: {came}"
        names = ("train-loss", "accuracy", "local-accuracy")
        loss, before, after = (_number(self.metrics.get(name)) for name in names)
        count = self.metrics.get("num-examples")
        examples = f"{count}" if isinstance(count, int) else "-"
        return f"{self.who}: {examples} examples, loss {loss}, own accuracy {before} -> {after}"


@dataclass(frozen=True)
class Failed(Event):
    """A client, or a whole round, failed."""

    kind = "failure"
    level = logging.WARNING
    who: str
    reason: str


@dataclass(frozen=True)
class RoundDone(Event):
    """A round is over; round 0 is the evaluation of the initial model."""

    kind = "round-done"
    round: int
    num_rounds: int
    folded: bool
    num_clients: int | None  # None where that is not told
    num_failures: int
    seconds: float
    loss: float | None = None
    accuracy: float | None = None
    left: str = ""  # estimate of the time that is left


@dataclass(frozen=True)
class PrivacySpent(Event):
    """What a run has spent of its privacy budget, after a release."""

    kind = "privacy-spent"
    round: int
    epsilon: float
    delta: float
    releases: int
    noise_multiplier: float


@dataclass(frozen=True)
class BestKept(Event):
    """A run ends early: no round was better than ``best`` for as long as it was to wait."""

    kind = "best-kept"
    round: int
    best: int
    metric: str
    value: float


@dataclass(frozen=True)
class LateReply(Event):
    """A reply came after its round was over."""

    kind = "late-reply"
    who: str


@dataclass(frozen=True)
class Waiting(Event):
    """A round waits for nodes that work for another run; ``nodes`` has what each said."""

    kind = "waiting"
    round: int
    nodes: Mapping[str, str]
    pause: float  # seconds until they are asked again
    limit: float  # seconds that may still be waited


@dataclass(frozen=True)
class Resumed(Event):
    """The run goes on from a checkpoint; ``earlier`` tells of the parts before this one."""

    kind = "resumed"
    round: int
    checkpoint: str
    earlier: Mapping[str, Any]

    def figures(self) -> dict[str, Any]:
        """Return the round, and what is told of the earlier parts."""
        return {"round": self.round, **self.earlier}


@dataclass(frozen=True)
class Ended(Event):
    """The run failed or was interrupted after ``round``."""

    level = logging.ERROR
    state: str
    round: int
    num_rounds: int
    error: str = ""

    @property
    def kind(self) -> str:  # type: ignore[override]
        """How the run ended."""
        return self.state

    def figures(self) -> dict[str, Any]:
        """Return the round; the text tells the rest."""
        return {"round": self.round}


@dataclass(frozen=True)
class ResultsAt(Event):
    """Where the results are, a path of the machine that the ServerApp runs on."""

    kind = "results"
    folder: str


@dataclass(frozen=True)
class TableFollows(Event):
    """The next lines of the output are the table of the run, up to :class:`ResultsAt`."""

    kind = "table"


@dataclass(frozen=True)
class AppDone(Event):
    """The ServerApp has nothing left to do: its results are on the disk, its nodes were told."""

    kind = "app-done"


def _text(event: Event) -> str:
    """Say an event in one line; all the English of events is here."""
    match event:
        case RoundStarted():
            return f"round {event.round}/{event.num_rounds}: {event.asked} clients train"
        case Replied():
            left = f" ({event.left})" if event.left else ""
            return f"  [{event.answered}/{event.asked}] {event.summary}{left}"
        case Failed():
            verb = "refused" if event.reason.startswith(REFUSED) else "failed"
            return f"  {event.who} {verb}: {event.reason}"
        case RoundDone():
            what = f"round {event.round}/{event.num_rounds}" if event.round else "initial model"
            scores = f"loss {_number(event.loss)}, accuracy {_number(event.accuracy)}"
            left = f"; {event.left}" if event.left else ""
            outcome = scores if event.folded else "FAILED"
            return f"{what}: {outcome} ({duration(event.seconds)}{left})"
        case PrivacySpent():
            spent = f"epsilon {event.epsilon:.3g} at delta {event.delta:g}"
            return f"  privacy: {spent} after {event.releases} releases"
        case BestKept():
            return (
                f"ends after round {event.round}: no {event.metric} on validation rows was better "
                f"than {event.value:.3f} of round {event.best} (patience)"
            )
        case LateReply():
            return f"{event.who}: late reply dropped; it is asked again"
        case Waiting():
            names, reason = ", ".join(sorted(event.nodes)), next(iter(event.nodes.values()), "")
            return (
                f"round {event.round} waits: {names}: {reason}; asked again in "
                f"{duration(event.pause)}, for {duration(event.limit)} at most "
                "(wait-for-other-runs)"
            )
        case Resumed():
            return f"going on from {event.checkpoint}"
        case Ended():
            why = f": {event.error}" if event.error else ""
            return f"{event.state} after round {event.round} of {event.num_rounds}{why}"
        case ResultsAt():
            return f"results: {event.folder}"
    return ""


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


_KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (RoundStarted, Replied, Failed, RoundDone, PrivacySpent, BestKept, LateReply,
                  Waiting, ResultsAt, TableFollows, AppDone)
}  # fmt: skip


# -- written and read --------------------------------------------------------------------------


def tell(event: Event) -> None:
    """Tell of an event on the app's logger, from where it goes wherever it is wanted."""
    logger.log(event.level, "%s", event.text, extra={"event": event})


def to_line(event: Event) -> str:
    """Return an event as one line of the ServerApp's output."""
    figures = {"event": event.kind, **event.figures()}
    return PREFIX + json_line(figures, allow_nan=True, default=str)


def from_line(line: str) -> Event | None:
    """Return the event that :func:`to_line` made a line of; None for any other line.

    Types are checked. Fields that this release does not know are passed over: the ServerApp may be
    of another one.
    """
    if not line.startswith(PREFIX):
        return None
    try:
        told = json.loads(line.removeprefix(PREFIX))
        return _adapter(told["event"]).validate_python(told)
    except (ValueError, KeyError, TypeError):
        return None


@cache
def _adapter(kind: str) -> TypeAdapter[Event]:
    return TypeAdapter(_KINDS[kind])


def log_to_stdout(followed: bool = False) -> None:
    """Show this app's lines, once, whatever Flower's own logging does.

    Args:
        followed: write the events, too, each before its line. The output is the only way to
            whoever follows a run on another machine: ``log.jsonl`` is out of reach there.
    """
    if logger.handlers:
        return
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    lines.addFilter(lambda record: bool(record.getMessage()))
    if followed:
        logger.addHandler(_event_lines())
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _event_lines() -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: hasattr(record, "event"))
    handler.format = lambda record: to_line(record.event)  # type: ignore[method-assign,attr-defined]
    return handler


class EventLog(logging.Handler):
    """Writes the records of the app's logger to a file, a line a record, at once.

    Args:
        path: the file; lines are added to what it holds.
        constant: what every line has, such as the run and the scheme.
        may_write: asked before each line; a process whose run was taken over must be silent.
    """

    def __init__(
        self,
        path: Path,
        constant: Mapping[str, Any],
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self._may_write = may_write
        self._constant = dict(constant)
        self._round: int | None = None
        self._path = path
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self.addFilter(lambda record: bool(record.getMessage()))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk must not stop the run."""
        try:
            line = json_line(self._line(record), allow_nan=True, default=str)
        except ValueError:
            self.handleError(record)
            return
        self._waiting.append(line + "\n")
        self._write()

    def close(self) -> None:
        """Try once more to write what did not fit on the disk."""
        self._write()
        super().close()

    def _write(self) -> None:
        """Write the lines that wait; where there is no room they wait for the next one."""
        with suppress(OSError):
            if self._waiting and self._may_write():
                append_text(self._path, "".join(self._waiting), sync=False)
                self._waiting.clear()

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        event: Event = getattr(record, "event", Event())
        figures = event.figures()
        # Lines of clients and libraries do not know the round: it is that of the last one that did.
        self._round = figures.pop("round", self._round)
        who = _WHO.match(str(figures.get("who", "")))
        return {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._constant,
            "round": self._round,
            "event": event.kind,
            **({who[1]: int(who[2])} if who else {}),
            **figures,
            "message": log_line(record.getMessage().strip()),
        }
