"""The screen of a run: a live table on a terminal, plain lines everywhere else.

What happens is read off the progress lines of the ServerApp (:mod:`fedmoe_app.results.progress`),
which may run on another machine; where its result folder is at hand, the figures of finished rounds
come from there. A test holds these patterns and the lines together.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar

from fedmoe_app.results.folder import ResultsError, read_metrics
from fedmoe_app.results.table import metrics_table
from fedmoe_app.shown.terminal import Console, Table, literal, say_output
from fedmoe_app.shown.text import visible, without_colours

# Headers by which the ServerApp's table is recognised.
TABLE_MARKS = ("bytes up", "bytes down")
MAX_ROWS = 15  # rounds in the live table

_TIME = r"^(?:\d\d:\d\d:\d\d )"
_RESULTS = re.compile(r"^(?:[\d:]+ )?results: (.+?)\s*$")
_STARTED = re.compile(_TIME + r"round (\d+)/(\d+): (\d+) clients train$")
_REPLY = re.compile(_TIME + r"  \[(\d+)/(\d+)\] (.+?)(?: \(about (.+) left( in this round)?\))?$")
_FAILED = re.compile(_TIME + r"  (?!round )(.+?) failed: ")
_DONE = re.compile(
    _TIME + r"(?:round (\d+)/\d+|initial model): (FAILED|loss (\S+), accuracy (\S+)) "
    r"\(.+?(?:; about (.+) left)?\)$"
)


class Screen:
    """Print the lines of a run at once, except the ServerApp's own last one.

    The ServerApp ends with the table and ``results: FOLDER``, for those who type ``flwr run``.
    Here that line is kept for the very end, after what Flower says on closing.
    """

    def __init__(self) -> None:
        """Print nothing yet."""
        self.results: str | None = None
        self.table_shown = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End; nothing is left to do."""

    def __call__(self, line: str) -> None:
        """Print one line."""
        if found := _RESULTS.match(line):
            self.results = found[1]
            if self.table_shown:
                return
        self.table_shown |= all(header in line for header in TABLE_MARKS)
        say_output(line)


@dataclass
class Heard:
    """What a run's lines tell of it, wherever it runs.

    Attributes:
        results: its result folder, a path of the machine that it runs on; None until it is told.
        last_round: the last one that is done; -1 for none.
    """

    results: str | None = None
    last_round: int = -1

    def take(self, line: str) -> None:
        """Learn from a line."""
        if found := _RESULTS.match(line):
            self.results = found[1]
        elif found := _DONE.match(line):
            self.last_round = max(self.last_round, int(found[1] or 0))


class RunView:
    """What the live table shows, learnt from the lines of a run one by one.

    Args:
        folder: the run's result folder where it is at hand; None where it is not.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._rounds: dict[int, dict[str, Any]] = {}
        self._round, self._num_rounds = 0, 0
        self._done, self._asked = 0, 0
        self._left = ""
        self._last = "starting"

    def take(self, line: str) -> bool:
        """Learn from a line; tell whether the view shows what it says."""
        if found := _STARTED.match(line):
            self._round, self._num_rounds, self._asked = (int(found[i]) for i in (1, 2, 3))
            self._done, self._last = 0, "waiting for the first client"
        elif found := _REPLY.match(line):
            self._done, self._last = int(found[1]), found[3]
            if found[4]:
                self._left = f"about {found[4]} left{found[5] or ''}"
        elif found := _DONE.match(line):
            self._take_round(int(found[1] or 0), found)
        else:
            self._done += bool(_FAILED.match(line))
            return False
        return True

    def _take_round(self, number: int, found: re.Match[str]) -> None:
        self._rounds[number] = {
            "round": number,
            "status": "failed" if found[2] == "FAILED" else "ok",
            "loss": _number(found[3]),
            "accuracy": _number(found[4]),
        }
        self._last = "evaluated" if number else "initial model evaluated"
        self._left = f"about {found[5]} left" if found[5] else ""
        if number:
            self._done = self._asked

    def __rich__(self) -> RenderableType:
        """Draw the table of the last rounds and the state of this one."""
        bar = Table.grid(padding=(0, 2, 0, 0))
        done = literal(f"{self._done} of {self._asked} clients", style="bold")
        if self._num_rounds:
            name = literal(f"round {self._round} of {self._num_rounds}", style="bold cyan")
            bar.add_row(name, ProgressBar(max(1, self._asked), self._done, width=24), done,
                        self._left)  # fmt: skip
        last = literal(visible(self._last), style="dim", overflow="ellipsis", no_wrap=True)
        lines = self._lines()
        return Group(*([metrics_table(lines)] if lines else []), bar, last)

    def _lines(self) -> list[dict[str, Any]]:
        """Return the finished rounds: from the folder, or what their lines said."""
        if self._folder and any("bytes_up" not in line for line in self._rounds.values()):
            with suppress(ResultsError, OSError):  # not there yet: the lines' own figures stay
                self._rounds |= {line["round"]: line for line in read_metrics(self._folder)}
        return [self._rounds[number] for number in sorted(self._rounds)][-MAX_ROWS:]


class LiveScreen(Screen):
    """A table that changes as the run goes on; warnings and other lines stand above it.

    Args:
        folder: the run's result folder where it is at hand.
        console: the terminal.
    """

    def __init__(self, folder: Path | None, console: Console) -> None:
        super().__init__()
        self._view = RunView(folder)
        self._console = console
        self._has_folder = folder is not None
        self._in_table = False
        self._live = Live(self._view, console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Show the table."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the table away: the whole one is printed at the end."""
        self._live.__exit__(kind, error, traceback)

    def __call__(self, line: str) -> None:
        """Take a line into the table, or print it above."""
        if found := _RESULTS.match(line):
            self.results, self._in_table = found[1], False
        # The ServerApp's table comes again at the end, out of the folder, and with colours.
        if self._has_folder and all(header in line for header in TABLE_MARKS):
            self._in_table = True
        if not self._in_table and not self._view.take(line):
            self._console.print(literal(visible(without_colours(line))), soft_wrap=True)
        self._live.refresh()


def open_screen(folder: Path | None, verbose: bool) -> Screen:
    """Return the live table where the output is a terminal that can draw it, else plain lines."""
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not verbose
    return LiveScreen(folder, console) if live else Screen()


def _number(text: str | None) -> float | None:
    return float(text) if text and text != "-" else None
