"""What a user waits for before the first round and after the last, in `fedmoe run`.

    python -m benchmarks.start_up [--repeats 3]

Runs one round of the embedded task on 8 simulated clients, reads its output, and prints the
seconds from the command to each stage: medians and ranges. Run it once before, so that caches are
warm, and on a machine that does nothing else. The last row is the CPU time of all processes that
the command started, orphans included (Linux), which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.cells import REPOSITORY, print_markdown

CLIENTS = 8
# What the output has first when a stage begins, in this order.
STAGES: Mapping[str, str] = {
    "the ServerApp has started": "reading the data and building the model",
    "data and model are there": "results: ",
    "the initial model is scored": "initial model: ",
    "the first client has trained": f"[1/{CLIENTS}]",
    "the round is evaluated": "round 1/1: loss",
}
END = "the command has ended"
CPU = "CPU time of all processes"
_PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    found = [seconds_of_stages() for _ in range(parser.parse_args().repeats)]
    rows = [_row(stage, [run[stage] for run in found]) for stage in (*STAGES, END, CPU)]
    print_markdown(("stage", "seconds since the command", "range"), rows)


def seconds_of_stages() -> dict[str, float]:
    """Run once; return the seconds from the start to each stage, and those of CPU time.

    Raises:
        SystemExit: the run failed, or its output lacks a stage.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    used = _used()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("fedmoe")), "run", str(REPOSITORY)]
        command += ["--clients", str(CLIENTS), "--rounds", "1", "--output", folder]
        started = time.monotonic()
        run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"NO_COLOR": "1"},
        )
        assert run.stdout is not None
        lines, found = [], dict[str, float]()
        for line in run.stdout:
            lines.append(line)
            for stage, text in STAGES.items():
                if stage not in found and text in line:
                    found[stage] = time.monotonic() - started
                    break
        code = run.wait()
        found[END] = time.monotonic() - started
        found[CPU] = _used() - used
    if code or len(found) != len(STAGES) + 2:
        raise SystemExit("".join(lines))
    return found


def _used() -> float:
    """Return the CPU seconds of all children, adopted ones included, once they have ended."""
    with suppress(ChildProcessError):
        while True:
            os.wait()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _row(stage: str, seconds: Sequence[float]) -> list[str]:
    return [stage, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}–{max(seconds):.1f}"]


if __name__ == "__main__":
    main()
