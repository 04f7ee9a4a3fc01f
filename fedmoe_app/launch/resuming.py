"""Go on with a run that was lost, not failed: a bounded number of times, later each time.

Flower gives a run up when it has not heard of its ServerApp for a minute, which a suspended
machine, a stalled disk or a killed process is enough for; a SuperLink that is started again has
forgotten its runs. A resumed run is the run that would have been, so it can be resumed without
asking. A run whose app raised is another thing: it would fail again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.flower import Outcome, Output, SuperLinkLostError
from fedmoe_app.launch.live import Heard
from fedmoe_app.results.events import Event
from fedmoe_app.results.folder import (
    BEING_WRITTEN,
    STILL_RUNNING,
    list_checkpoints,
    results_of,
    round_of,
)
from fedmoe_app.results.status import note_death

MAX_RESUMES = 5  # in a row without a new checkpoint
FIRST_PAUSE, MAX_PAUSE = 5.0, 60.0  # seconds before a resume; doubled while nothing gets better

LOST = "lost"  # Outcome.status of a run whose SuperLink cannot be asked
# What Flower 1.39 says of a run whose ServerApp it has not heard of for a minute.
NO_HEARTBEAT = "No heartbeat received from the task"

Start = Callable[[RunConfig, Output], Outcome]


@dataclass
class _Patience:
    """How often in a row it was tried in vain, and the last checkpoint that there is."""

    limit: int
    last_round: int
    in_vain: int = 0

    def note(self, last_round: int) -> bool:
        """Take what a part of the run brought; return whether it got on."""
        got_on = last_round > self.last_round
        self.in_vain = 0 if got_on else self.in_vain + 1
        self.last_round = max(last_round, self.last_round)
        return got_on

    def pause(self) -> float | None:
        """Return the seconds to wait before it is tried again; None if it is not."""
        if self.in_vain >= self.limit:
            return None
        return min(MAX_PAUSE, FIRST_PAUSE * 2**self.in_vain)


def run_to_the_end(
    start: Start, config: RunConfig, folder: Path | None, output: Output, limit: int
) -> Outcome:
    """Run; go on with the run as long as it is lost and can be resumed.

    Args:
        start: runs the app with a run config, until the run is over.
        config: of the run; its ``resume`` is changed for the parts after the first.
        folder: the result folder, which may be on another machine; None where that is not known.
        output: where lines go.
        limit: resumes in a row that bring no new checkpoint, at most; 0 to resume never.

    Returns:
        how the last part ended.

    Raises:
        LaunchError: when the first part cannot be started.
    """
    heard = Heard()

    def hear(event: Event) -> None:
        heard.take(event)
        output.hear(event)

    told = replace(output, hear=hear)
    patience = _Patience(limit, _last_round(folder, heard))
    resumes = 0
    while True:
        outcome = _outcome(start, config, told, is_first=resumes == 0)
        _note_end(folder, outcome)
        got_on = patience.note(_last_round(folder, heard))
        may = _may_resume(outcome, got_on, is_first=resumes == 0)
        pause = patience.pause() if may else None
        where = folder or (Path(heard.results) if heard.results else None)
        if pause is None or where is None or patience.last_round < 0:
            return outcome
        resumes += 1
        _say(output, _announcement(outcome, patience, pause))
        time.sleep(pause)
        config = config.model_copy(update={"resume": str(results_of(where))})


def _outcome(start: Start, config: RunConfig, output: Output, is_first: bool) -> Outcome:
    """Run one part; a SuperLink that is away ends a run that has begun, and no more than that."""
    try:
        return start(config, output)
    except SuperLinkLostError as error:
        return Outcome("", LOST, str(error))
    except LaunchError as error:
        if is_first:
            raise
        return Outcome("", LOST, str(error))


def _may_resume(outcome: Outcome, got_on: bool, is_first: bool) -> bool:
    if outcome.completed or outcome.was_stopped:
        return False
    if outcome.raised:
        # The process before this one may sleep, and not have let go of the folder yet.
        held = any(words in outcome.details for words in (BEING_WRITTEN, STILL_RUNNING))
        return held and not is_first
    # Whatever else may end a run is worth another try only after it got somewhere.
    return got_on or outcome.status == LOST or NO_HEARTBEAT in outcome.details


def _note_end(folder: Path | None, outcome: Outcome) -> None:
    if folder is not None and not outcome.completed and outcome.run_id:
        note_death(folder, outcome.run_id, outcome.details or outcome.status)


def _last_round(folder: Path | None, heard: Heard) -> int:
    """Return the round of the newest checkpoint, as far as it can be known; -1 for none."""
    if folder is None or not folder.is_dir():
        return heard.last_round
    return max(map(round_of, list_checkpoints(folder)), default=-1)


def _announcement(outcome: Outcome, patience: _Patience, pause: float) -> str:
    return (
        f"the run was lost ({outcome.details or outcome.status}); going on after round "
        f"{patience.last_round} in {pause:.0f} s (try {patience.in_vain + 1} of {patience.limit})"
    )


def _say(output: Output, line: str) -> None:
    output.write(f"{line}\n")
    output.show(line)
