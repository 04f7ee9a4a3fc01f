"""What ``fedmoe status`` shows of a run, all of it read from the result folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.config.paths import results_dir
from fedmoe_app.results.best import kept_note
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import METRICS_FILE, ResultsError, list_checkpoints, read_rounds
from fedmoe_app.results.status import (
    COMPLETED,
    FAILED,
    GONE,
    RUNNING,
    STALE,
    STATUS_FILE,
    how_to_resume,
    read_status,
)
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.terminal import say
from fedmoe_app.shown.text import visible

_MAX_REASON = 160  # characters of a failure's reason that are shown
_MEANING = {RUNNING: "running", COMPLETED: "finished", FAILED: "failed"}


@command("fedmoe status")
def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            help="Result folder of a run, or the run's name.",
            show_default="the newest in $FEDMOE_HOME",
        ),
    ] = None,
) -> None:
    """Show how a run stands: rounds, clients, last metrics, failures, how to go on."""
    for line in overview(find_run(run_dir) if run_dir else newest_run()):
        say(line)


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
        *_figures(lines, status.get("repeated") or {}),
        *_failures(lines),
        *_going_on(folder, status),
    ]


def _state(folder: Path, status: Mapping[str, Any]) -> Iterator[str]:
    state = status["state"]
    yield f"run       {folder.name}  ({folder})"
    yield f"scheme    {status['scheme']}"
    yield f"state     {_meaning(status)}"
    if status.get("error"):
        yield f"reason    {visible(status['error'], _MAX_REASON)}"
    yield f"rounds    {max(status['round'], 0)} of {status['num_rounds']} done"
    yield f"time      {_time(status)}"
    if state in (RUNNING, STALE):
        yield f"process   pid {status['pid']} on {status['host']}, last heard of {_heard(status)}"
    if last := status.get("last_end"):
        reason = f": {visible(last['error'], _MAX_REASON)}" if last.get("error") else ""
        yield f"resumed   {_times(status)}; the part before ended as {last['state']}{reason}"


def _meaning(status: Mapping[str, Any]) -> str:
    state = str(status["state"])
    if state != STALE:
        return _MEANING.get(state, state)
    if status.get("process") == GONE:
        return "died: its process is gone and could not say why"
    return f"no sign of life since {_clock(status)}: its process is stopped, or out of reach"


def _heard(status: Mapping[str, Any]) -> str:
    return f"{duration(time.time() - status['updated'])} ago ({_clock(status)})"


def _clock(status: Mapping[str, Any]) -> str:
    return f"{datetime.fromtimestamp(status['updated']):%Y-%m-%d %H:%M:%S}"


def _time(status: Mapping[str, Any]) -> str:
    """Return the time of all parts of the run together, as far as it is known to have lived."""
    now = status["updated"] if status["state"] == STALE else time.time()
    seconds = (status.get("ended") or now) - status["started"]
    before = float(status.get("seconds_before", 0.0))
    parts = f", {duration(before)} of it before the last resume" if before else ""
    return f"{duration(before + seconds)}{parts}"


def _times(status: Mapping[str, Any]) -> str:
    count = int(status.get("resumes", 1))
    return "once" if count == 1 else f"{count} times"


def _figures(lines: Sequence[Mapping[str, Any]], repeated: Mapping[str, float]) -> Iterator[str]:
    """Yield the last metrics and what was sent in all, in rounds done in vain as well."""
    scored = [line for line in lines if line["loss"] is not None]
    if scored:
        last = scored[-1]
        yield (
            f"metrics   round {last['round']}: loss {last['loss']:.4f}, "
            f"{last['metric']} {last['accuracy']:.4f}"
        )
    if note := kept_note(lines):
        yield f"kept      {note}"
    if len(lines) > 1:
        clients = ", ".join(str(client["client"]) for client in lines[-1]["clients"])
        yield f"clients   {clients or 'none'} in round {lines[-1]['round']}"
        up, down = (
            sum(line[key] or 0 for line in lines) + repeated.get(key, 0)
            for key in ("bytes_up", "bytes_down")
        )
        note = f" ({repeated['rounds']:.0f} rounds of it were repeated)" if repeated else ""
        yield f"bytes     {human_bytes(up)} up, {human_bytes(down)} down in all{note}"


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
