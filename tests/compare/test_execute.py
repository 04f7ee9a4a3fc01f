import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe_app.compare.execute import Outcomes, run_cells, time_left
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.plan import Cell
from tests.compare.fakes import (
    DIES,
    INTERRUPTS,
    LOSES,
    RAISES,
    REJECTS,
    TEARS,
    calls,
    cell,
    example,
    fake_run,
)


def run(path: Path, *cells: Cell, workers: int = 0) -> Outcomes:
    """Run here, or with ``workers`` in other processes."""
    with ComparisonFolder(path) as folder:
        folder.write_plan(example()[0])
        return run_cells(cells, folder, workers, fake_run, here=not workers)


def test_finished_cells_are_run_once(tmp_path: Path) -> None:
    first = run(tmp_path, cell(seed=1), cell(seed=2))
    assert len(calls(tmp_path)) == 2
    again = run(tmp_path, cell(seed=1), cell(seed=2), cell(seed=3))
    assert calls(tmp_path)[2:] == ["fedavg, iid, seed 3"]
    assert len(again.figures) == 3
    assert first.figures.items() <= again.figures.items()


def test_cells_of_one_key_are_run_once(tmp_path: Path) -> None:
    run(tmp_path, cell(), cell())
    assert len(calls(tmp_path)) == 1


def test_each_end_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, cell(seed=1), cell(seed=RAISES))
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "2 runs; 2 to do"
    assert lines[1].startswith(
        "[1/2] fedavg, iid, seed 1: accuracy 0.200, loss 0.000, local accuracy 0.600, 20 B up a "
        "round, 4 s; about "
    )
    assert lines[2].startswith("[2/2] fedavg, iid, seed 90: FAILED: ValueError: no such client (")
    run(tmp_path, cell(seed=1))
    assert capfd.readouterr().out == "1 run, 1 of them kept; 0 to do\n"


@pytest.mark.parametrize("content", ["", "{}\n", "{torn", '{"round": 2}\n', "\xff\n"])
def test_a_kept_cell_that_cannot_be_read_is_run_again(
    tmp_path: Path, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, cell())
    (tmp_path / "cells" / cell().key / "metrics.jsonl").write_bytes(content.encode("latin-1"))
    outcomes = run(tmp_path, cell())
    assert "kept, but cannot be read, so it is run again: " in capfd.readouterr().out
    assert len(calls(tmp_path)) == 2
    assert outcomes.figures[cell().key].accuracy == pytest.approx(0.2)


def test_a_run_that_stops_early_has_failed(tmp_path: Path) -> None:
    outcomes = run(tmp_path, cell(seed=TEARS))
    assert "not that of round 2" in outcomes.failures[cell(seed=TEARS).key]


def test_a_rejected_client_stands_in_the_line_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = run(tmp_path, cell(seed=REJECTS))
    assert (
        capfd.readouterr()
        .out.splitlines()[-1]
        .endswith(", 20 B up a round, 4 s, 2 replies missing")
    )
    assert outcomes.failures == {}
    # The cell file knows nothing of it: kept runs of before are counted from their metrics.
    assert run(tmp_path, cell(seed=REJECTS)).figures == outcomes.figures
    assert len(calls(tmp_path)) == 1


def test_a_run_without_a_final_accuracy_has_failed_and_is_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = cell(seed=LOSES)
    outcomes = run(tmp_path, lost)
    reason = "no accuracy after the last round; round 2: 1 usable reply of 2"
    assert outcomes.failures == {lost.key: reason}
    assert outcomes.figures[lost.key].failed_rounds == 1
    log = tmp_path / "cells" / lost.key / "run.log"
    assert capfd.readouterr().out.endswith(f"seed 94: FAILED: {reason} (output: {log})\n")
    assert run(tmp_path, lost).failures == outcomes.failures
    assert "kept, but it failed, so it is run again: no accuracy" in capfd.readouterr().out
    assert len(calls(tmp_path)) == 2


def test_failures_and_dead_processes_stop_no_other_cell(tmp_path: Path) -> None:
    seeds = (RAISES, DIES, 1, 2)
    outcomes = run(tmp_path, *(cell(seed=seed) for seed in seeds), workers=2)
    assert outcomes.figures.keys() == {cell(seed=1).key, cell(seed=2).key}
    assert outcomes.failures[cell(seed=RAISES).key] == "ValueError: no such client"
    assert "its process died" in outcomes.failures[cell(seed=DIES).key]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Test runners that spread tests over processes ignore SIGINT in these."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_keeps_finished_cells_and_ends_the_processes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cell(seed=1), cell(seed=INTERRUPTS), workers=1)
    assert [p.name for p in (tmp_path / "cells").iterdir()] == [cell(seed=1).key]
    assert not (tmp_path / ".unfinished").exists()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("elapsed", "done", "waiting", "workers", "left"),
    [
        (60, 2, 4, 1, 120),  # 30 s each, one after the other
        (60, 1, 7, 2, 260),  # the second worker has done half a run: 1.5 in 60 s, 6.5 to do
        (60, 1, 1, 4, 20),  # the last one is under way
    ],
)
def test_the_time_left_counts_the_runs_that_go_on(
    elapsed: float, done: int, waiting: int, workers: int, left: float
) -> None:
    assert time_left(elapsed, done, waiting, workers) == pytest.approx(left)
