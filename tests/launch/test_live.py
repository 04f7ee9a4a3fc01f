"""The live table, fed with the events and lines that the ServerApp really writes."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedmoe_app.launch.live import LiveScreen, RunView, Screen, open_screen
from fedmoe_app.results.events import (
    Event,
    Failed,
    ResultsAt,
    RoundStarted,
    TableFollows,
    from_line,
    logger,
    to_line,
)
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.progress import Progress
from tests.report.html.runs import line

METRICS = {"train-loss": 1.25, "num-examples": 10, "accuracy": 0.5, "local-accuracy": 0.75}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that were told of, as they come through the output."""
    events: list[Event] = []

    def read(record: logging.LogRecord) -> None:
        event = from_line(to_line(record.event))  # type: ignore[attr-defined]
        assert event is not None
        events.append(event)

    handler = logging.Handler()
    handler.emit = read  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return events


def finished(number: int, folded: bool = True) -> RoundRecord:
    evaluation = {"loss": 1.5, "accuracy": 0.625}
    return RoundRecord(number, aggregated=folded, evaluation=evaluation, seconds={"round": 30.0})


def shown(view: RunView) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def follow(said: list[Event]) -> Callable[[RunView], list[str]]:
    """Give a view the events so far; return the lines of those that it leaves for the screen."""

    def feed(view: RunView) -> list[str]:
        left = [event.text for event in said if not view.take(event)]
        said.clear()
        return left

    return feed


def test_the_view_follows_a_run(follow: Callable[[RunView], list[str]]) -> None:
    progress, view = Progress(), RunView(None)
    progress.on_start(3)
    progress.on_round(finished(0))
    assert follow(view) == []
    assert "0.6250" in shown(view)
    progress.on_ask(1, 4)
    progress.on_reply("client 2", METRICS)
    progress.on_failure("client 1", "no file")
    assert follow(view) == ["  client 1 failed: no file"]
    assert "round 1 of 3" in shown(view)
    assert "2 of 4 clients" in shown(view)
    assert "client 2: 10 examples, loss 1.250, own accuracy 0.500 -> 0.750" in shown(view)
    assert "left in this round" in shown(view)
    progress.on_round(finished(1))
    assert follow(view) == []
    assert "about 1 min 0 s left" in shown(view)
    progress.on_ask(2, 4)
    progress.on_failure("round", "1 usable replies of 4")
    progress.on_round(finished(2, folded=False))
    assert follow(view) == ["  round failed: 1 usable replies of 4"]
    assert "2 failed" in shown(view)


def test_finished_rounds_have_the_figures_of_the_folder(
    follow: Callable[[RunView], list[str]], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "a")
    progress, view = Progress(), RunView(folder.path)
    progress.on_start(2)
    progress.on_round(finished(1))
    follow(view)
    assert "200 B" not in shown(view)  # not written yet: the line's own figures
    assert "0.6250" in shown(view)
    folder.append(line(1))
    assert "200 B" in shown(view)  # bytes up
    assert "0.2500" in shown(view)


def test_the_live_screen_prints_the_rest_above_and_leaves_the_table_for_the_end(
    tmp_path: Path,
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with LiveScreen(tmp_path, console) as screen:
        screen("12:00:00 warning [bold]as it is[/bold]")
        told(screen, RoundStarted(1, 2, 3))
        told(screen, Failed("client 1", "no file"))
        screen.hear(TableFollows())
        screen(" round  bytes up  bytes down")
        screen("     0     1 B        2 B")
        screen.hear(ResultsAt("/there/a"))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "warning [bold]as it is[/bold]" in out
    assert "1 of 3 clients" in out
    assert "client 1 failed: no file" in out
    assert "clients train" not in out
    assert "1 B" not in out
    assert (screen.results, screen.table_shown) == ("/there/a", False)


def told(screen: Screen, event: Event) -> None:
    """Let a screen hear of an event, and give it the line that follows."""
    screen.hear(event)
    screen(f"12:00:01 {event.text}")


def test_without_a_terminal_lines_stay_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_screen(tmp_path, verbose=False) as screen:
        assert type(screen) is Screen
        told(screen, RoundStarted(1, 2, 3))
        told(screen, ResultsAt("/there/a"))
        screen.hear(TableFollows())
        screen("     0     1 B        2 B")
        told(screen, ResultsAt("/there/a"))  # it is printed at the very end
    assert capsys.readouterr().out.splitlines() == [
        "12:00:01 round 1/2: 3 clients train",
        "12:00:01 results: /there/a",
        "     0     1 B        2 B",
    ]
