"""The screen of a run: a live table on a terminal, plain lines everywhere else.

What happens is told by the events that the ServerApp writes among its lines
(:mod:`fedmoe_app.results.events`). They come the same way wherever it runs, which ``log.jsonl``
would not: its folder may be on another machine, and begins later than the run. Where the result
folder is at hand, the figures of finished rounds come from there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar

from fedmoe_app.results.events import (
    Event,
    Failed,
    Replied,
    ResultsAt,
    RoundDone,
    RoundStarted,
    TableFollows,
)
from fedmoe_app.results.folder import ResultsError, read_metrics
from fedmoe_app.results.table import metrics_table
from fedmoe_app.shown.terminal import Console, Table, literal, say_output
from fedmoe_app.shown.text import visible, without_colours

MAX_ROWS = 15  # rounds in the live table


class Screen:
    """Print the lines of a run at once, except the ServerApp's own last one.

    The ServerApp ends with the table and ``results: FOLDER``, for those who type ``flwr run``.
    Here that line is kept for the very end, after what Flower says on closing.
    """

    def __init__(self) -> None:
        """Print nothing yet."""
        self.results: str | None = None
        self.table_shown = False
        self._shown: list[str] = []  # lines to come that need not be printed

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End; nothing is left to do."""

    def hear(self, event: Event) -> None:
        """Learn from an event; its line follows."""
        if isinstance(event, ResultsAt):
            self.results = event.folder
            if self.table_shown:
                self._leave_out(event)
        elif isinstance(event, TableFollows):
            self.table_shown = True

    def __call__(self, line: str) -> None:
        """Print one line."""
        if not self._is_left_out(line):
            say_output(line)

    def _leave_out(self, event: Event) -> None:
        """Do not print the line of an event."""
        self._shown.append(visible(event.text))

    def _is_left_out(self, line: str) -> bool:
        # Before the text stands the time.
        found = next((text for text in self._shown if line.endswith(text)), None)
        if found is not None:
            self._shown.remove(found)
        return found is not None


@dataclass
class Heard:
    """What a run's events tell of it, wherever it runs.

    Attributes:
        results: its result folder, a path of the machine that it runs on; None until it is told.
        last_round: the last one that is done; -1 for none.
    """

    results: str | None = None
    last_round: int = -1

    def take(self, event: Event) -> None:
        """Learn from an event."""
        if isinstance(event, ResultsAt):
            self.results = event.folder
        elif isinstance(event, RoundDone):
            self.last_round = max(self.last_round, event.round)


class RunView:
    """What the live table shows, learnt from the events of a run one by one.

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

    def take(self, event: Event) -> bool:
        """Learn from an event; tell whether the view shows what it says."""
        match event:
            case RoundStarted():
                self._round, self._num_rounds = event.round, event.num_rounds
                self._asked, self._done = event.asked, 0
                self._last = "waiting for the first client"
            case Replied():
                self._done, self._last = event.answered, event.summary
                self._left = event.left or self._left
            case RoundDone():
                self._take_round(event)
            case Failed():
                self._done += event.who != "round"
                return False
            case _:
                return False
        return True

    def _take_round(self, event: RoundDone) -> None:
        self._rounds[event.round] = {
            "round": event.round,
            "status": "ok" if event.folded else "failed",
            "loss": event.loss,
            "accuracy": event.accuracy,
        }
        self._last = "evaluated" if event.round else "initial model evaluated"
        self._left = event.left
        if event.round:
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

    def __exit__(self, *error: object) -> None:
        """Take the table away: the whole one is printed at the end."""
        self._live.stop()

    def hear(self, event: Event) -> None:
        """Take an event into the table."""
        if isinstance(event, ResultsAt):
            self.results, self._in_table = event.folder, False
        elif isinstance(event, TableFollows):
            # The ServerApp's table comes again at the end, out of the folder, and with colours.
            self._in_table = self._has_folder
        elif self._view.take(event):
            self._leave_out(event)
        self._live.refresh()

    def __call__(self, line: str) -> None:
        """Print a line above the table, unless the table shows it."""
        if not self._in_table and not self._is_left_out(line):
            self._console.print(literal(visible(without_colours(line))), soft_wrap=True)
            self._live.refresh()


def open_screen(folder: Path | None, verbose: bool) -> Screen:
    """Return the live table where the output is a terminal that can draw it, else plain lines."""
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not verbose
    return LiveScreen(folder, console) if live else Screen()
