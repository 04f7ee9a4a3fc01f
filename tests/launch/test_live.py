"""The live table, fed with the lines that the ServerApp really prints."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedmoe_app.launch.live import LiveScreen, RunView, Screen, open_screen
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.results.metrics import RoundReport
from fedmoe_app.results.progress import Progress, logger
from tests.report.html.runs import line

METRICS = {"train-loss": 1.25, "num-examples": 10, "accuracy": 0.5, "local-accuracy": 0.75}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The progress lines, as they stand in a log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return lines


def finished(number: int, folded: bool = True) -> RoundReport:
    evaluation = {"loss": 1.5, "accuracy": 0.625}
    return RoundReport(number, folded=folded, evaluation=evaluation, seconds={"round": 30.0})


def shown(view: RunView) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def follow(said: list[str]) -> Callable[[RunView], list[str]]:
    """Give a view the lines said so far; return those that it leaves for the screen."""

    def feed(view: RunView) -> list[str]:
        left = [text for text in said if not view.take(text)]
        said.clear()
        return left

    return feed


def test_the_view_follows_a_run(follow: Callable[[RunView], list[str]]) -> None:
    progress, view = Progress(), RunView(None)
    progress.start(3)
    progress.say("reading the data and building the model")
    progress.round_done(finished(0))
    assert len(follow(view)) == 1
    assert "0.6250" in shown(view)
    progress.round_started(1, 4)
    progress.reply("client 2", METRICS)
    progress.failure("client 1", "no file")
    assert [text[9:] for text in follow(view)] == ["  client 1 failed: no file"]
    assert "round 1 of 3" in shown(view)
    assert "2 of 4 clients" in shown(view)
    assert "client 2: 10 examples, loss 1.250, own accuracy 0.500 -> 0.750" in shown(view)
    assert "left in this round" in shown(view)
    progress.round_done(finished(1))
    assert follow(view) == []
    assert "about 1 min 0 s left" in shown(view)
    progress.round_started(2, 4)
    progress.failure("round", "1 usable replies of 4")
    progress.round_done(finished(2, folded=False))
    assert [text[9:] for text in follow(view)] == ["  round failed: 1 usable replies of 4"]
    assert "2 failed" in shown(view)


def test_finished_rounds_have_the_figures_of_the_folder(
    follow: Callable[[RunView], list[str]], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "a")
    progress, view = Progress(), RunView(folder.path)
    progress.start(2)
    progress.round_done(finished(1))
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
        for text in (
            "12:00:00 warning [bold]as it is[/bold]",
            "12:00:01 round 1/2: 3 clients train",
            " round  bytes up  bytes down",
            "     0     1 B        2 B",
            "12:00:09 results: /there/a",
        ):
            screen(text)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "warning [bold]as it is[/bold]" in out
    assert "0 of 3 clients" in out
    assert "clients train" not in out
    assert "1 B" not in out
    assert (screen.results, screen.table_shown) == ("/there/a", False)


def test_without_a_terminal_lines_stay_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_screen(tmp_path, verbose=False) as screen:
        assert type(screen) is Screen
        screen("12:00:01 round 1/2: 3 clients train")
    assert capsys.readouterr().out == "12:00:01 round 1/2: 3 clients train\n"
