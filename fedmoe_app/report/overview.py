"""What ``fedmoe status`` shows of a run, all of it read from the result folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.paths import results_dir
from fedmoe_app.report.log import METRICS_FILE, ResultsError, list_checkpoints, read_rounds
from fedmoe_app.report.progress import duration
from fedmoe_app.report.status import COMPLETED, FAILED, RUNNING, STALE, STATUS_FILE, read_status
from fedmoe_app.report.table import human_bytes
from fedmoe_app.shown.terminal import shell_word
from fedmoe_app.shown.text import visible

_MAX_REASON = 160  # characters of a failure's reason that are shown
_MEANING = {
    RUNNING: "running",
    COMPLETED: "finished",
    FAILED: "failed",
    STALE: "stale: its process is gone, or has not been heard of for a minute",
}


def newest_run(results: Path | None = None) -> Path:
    """Return the run in a folder of results that was written to last.

    Raises:
        ResultsError: when there is none.
    """
    folder = results or results_dir()
    found = list(folder.glob(f"*/{STATUS_FILE}"))
    if not found:
        raise ResultsError(f"{folder}: no run in it; name the result folder of one")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def overview(folder: Path) -> list[str]:
    """Return lines that say how a run stands.

    Raises:
        ResultsError: when the folder is no run's.
    """
    folder = folder.absolute()
    status = read_status(folder)
    lines = read_rounds(folder) if (folder / METRICS_FILE).is_file() else []
    return [
        *_state(folder, status),
        *_figures(lines),
        *_failures(lines),
        *_going_on(folder, status),
    ]


def _state(folder: Path, status: Mapping[str, Any]) -> Iterator[str]:
    state = status["state"]
    yield f"run       {folder.name}  ({folder})"
    yield f"scheme    {status['scheme']}"
    yield f"state     {_MEANING.get(state, state)}"
    if status.get("error"):
        yield f"reason    {visible(status['error'], _MAX_REASON)}"
    end = status.get("ended") or (status["updated"] if state == STALE else time.time())
    yield f"rounds    {max(status['round'], 0)} of {status['num_rounds']} done"
    yield f"time      {duration(end - status['started'])}"


def _figures(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    scored = [line for line in lines if line["loss"] is not None]
    if scored:
        last = scored[-1]
        yield (
            f"metrics   round {last['round']}: loss {last['loss']:.4f}, "
            f"{last['metric']} {last['accuracy']:.4f}"
        )
    if len(lines) > 1:
        clients = ", ".join(str(client["client"]) for client in lines[-1]["clients"])
        yield f"clients   {clients or 'none'} in round {lines[-1]['round']}"
        up, down = (sum(line[key] for line in lines) for key in ("bytes_up", "bytes_down"))
        yield f"bytes     {human_bytes(up)} up, {human_bytes(down)} down in all"


def _failures(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Count the failures by client and show the last reason of each."""
    counts: Counter[str] = Counter()
    last: dict[str, tuple[int, str]] = {}
    for line in lines:
        for failure in line["failures"]:
            counts[failure["who"]] += 1
            last[failure["who"]] = (line["round"], failure["reason"])
    if not counts:
        yield "failures  none"
    for who, count in sorted(counts.items()):
        server_round, reason = last[who]
        shown = visible(reason, _MAX_REASON)
        yield f"failures  {who}: {count}, last in round {server_round}: {shown}"


def _going_on(folder: Path, status: Mapping[str, Any]) -> Iterator[str]:
    checkpoints = list_checkpoints(folder)
    if status["state"] in (RUNNING, COMPLETED) or not checkpoints:
        return
    yield f"saved     {checkpoints[0].relative_to(folder)}"
    yield f"go on     {how_to_resume(folder)}"


def how_to_resume(folder: Path) -> str:
    """Return the command that goes on with the run of a result folder."""
    return f"fedmoe run APP [CONNECTION] --resume {shell_word(folder)}"
