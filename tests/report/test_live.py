"""The page of a run that goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app.report import live
from fedmoe_app.report.live import LiveReport
from fedmoe_app.results.folder import METRICS_FILE
from fedmoe_app.results.metrics import RoundRecord
from tests.conftest import flat_config
from tests.report.html.runs import line, write_run

FLAT = flat_config(**{"num-server-rounds": 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a", [line(0), line(1)])


def text(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_the_page_says_that_the_run_goes_on_and_then_how_it_ended(folder: Path) -> None:
    report = LiveReport(folder, FLAT)
    report.on_round(RoundRecord(1))
    assert 'class="state running"' in text(folder)
    assert "after round 1 of 2" in text(folder)
    report.on_end(None)
    assert 'class="state complete"' in text(folder)
    report.on_end(RuntimeError("no <client> left"))
    assert 'class="state failed"' in text(folder)
    assert "RuntimeError: no &lt;client&gt; left" in text(folder)
    assert {path.name for path in folder.iterdir()} == {"config.toml", METRICS_FILE, "report.html"}


def test_a_page_that_takes_long_is_written_less_often(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [100.0], []

    def write(*given: Any) -> None:
        written.append(now[0])
        now[0] += 2.0  # seconds that it took

    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "write_page", write)
    report = LiveReport(folder, FLAT)
    for seconds in (0, 5, 10, 10, 10):
        now[0] += seconds
        report.on_round(RoundRecord(1))
    assert written == [100.0, 127.0]  # 20 s after the first have passed
    report.on_end(None)
    assert len(written) == 3


def test_a_page_that_cannot_be_made_costs_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedmoe"), "propagate", True)
    (folder / METRICS_FILE).write_text('{"round": 0}\n')
    report = LiveReport(folder, FLAT)
    for _ in range(3):
        report.on_round(RoundRecord(0))
    report.on_end(None)
    # A set: pytest hears loggers that do not propagate itself, and then each record twice.
    assert len({r for r in caplog.records if "no report.html" in r.getMessage()}) == 1
    assert not (folder / "report.html").exists()
