"""Where the time of a whole round goes: server and clients in one process, under cProfile.

    python -m benchmarks.round_profile [--clients 8] [--rounds 3] [-c 'wire.codec="topk+int4"']

The embedded task in process, one thread. Seconds are cumulative over the rounds after the first,
with what a function calls; they are CPU work, but for the profiler's own cost (about a tenth).
Steps that a version does not have are left out, so that older versions can be compared.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import print_markdown, run_config
from fedmoe_app import run_in_process
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.server.round import Round
from fedmoe_app.server.rounds import RoundLoop

# What is measured, and the functions that do it: end of the file's path, name.
STEPS = {
    "the whole round": [("server/rounds.py", "run_round")],
    "clients: training": [("client/train.py", "train")],
    "clients: scoring": [("client/round.py", "_score")],
    "clients: encoding, error feedback": [("client/encode.py", "encode_reply")],
    "clients: received state": [("client/received.py", "complete")],
    "server: messages out": [("strategy.py", "_address")],
    "server: decoding and checks": [("wire/replies.py", "decode_update")],
    "server: sums at once": [("streaming.py", "take"), ("streaming.py", "take_waiting")],
    "server: store": [("store.py", "store")],
    "server: aggregation and encoding": [("strategy.py", "_aggregate")],
    "server: diagnostics": [("aggregation/diagnostics.py", "add")],
    "server: test set": [("fedmoe_app/server/run.py", "evaluate_global")],
    "server: log, checkpoint, report": [("server/rounds.py", "_report")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-c", "--config", default="", help="overrides of the run config")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    overrides = read_overrides([arguments.config]) if arguments.config else {}
    seconds = _profile(overrides, arguments.clients, arguments.rounds)
    whole = seconds["the whole round"]
    rows = [
        (step, f"{spent / arguments.rounds:.3f}", f"{spent / whole:.1%}")
        for step, spent in seconds.items()
    ]
    print_markdown(("step", "s a round", "share"), rows)


def _profile(overrides: dict[str, Any], clients: int, rounds: int) -> dict[str, float]:
    """Run 1 + ``rounds`` rounds and return the seconds of each step, without the first round's."""
    profiler = cProfile.Profile()
    whole = RoundLoop.run_round

    def watched(self: RoundLoop, now: Round, *rest: Any) -> None:
        if now.server_round == 2:
            profiler.enable()
        whole(self, now, *rest)

    RoundLoop.run_round = watched  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        own = {"num-server-rounds": 1 + rounds, "output-dir": folder}
        run_in_process(run_config(own | overrides), clients)
    profiler.disable()
    found: dict[str, float] = {}
    for (path, _, name), (*_, spent, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for step, functions in STEPS.items():
            if any(Path(path).as_posix().endswith(f"/{e}") and name == n for e, n in functions):
                found[step] = found.get(step, 0.0) + spent
    return {step: found[step] for step in STEPS if step in found}


if __name__ == "__main__":
    main()
