"""Metrics lines and result folders made up for the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedmoe_app.results.folder import RunFolder
from tests.conftest import flat_config

Line = dict[str, Any]


def client(number: int, **more: Any) -> Line:
    """One client's entry of a line."""
    figures = {
        "num_examples": 10 * (number + 1),
        "num_steps": 4,
        "train_loss": 1.5 - 0.1 * number,
        "loss": 1.6,
        "accuracy": 0.25,
        "local_loss": 1.2,
        "local_accuracy": 0.5 + 0.05 * number,
        "bytes_up": 100,
        "bytes_down": 200,
    }
    return {"client": number, **figures, **more}


def line(number: int, clients: tuple[int, ...] = (0, 1), layers: int = 2, experts: int = 4) -> Line:
    """Round r: client i sent i + e tokens to expert e, and trained it in r steps."""
    if number == 0:
        clients = ()
    count = [[[i + e for e in range(experts)] for _ in range(layers)] for i in clients]
    trained = [[[number] * experts for _ in range(layers)] for _ in clients]
    return {
        "round": number,
        "status": "ok",
        "loss": 2.0 - 0.25 * number,
        "accuracy": 0.125 * (number + 1),
        "metric": "accuracy",
        "train_loss": 1.5 if number else None,
        "num_clients": len(clients),
        "bytes_up": 100 * len(clients),
        "bytes_down": 200 * len(clients),
        "clients": [client(i) for i in clients],
        "failures": [],
        "routing": {"count": count, "trained": trained},
        "diagnostics": {},
        "seconds": {"round": 1.5, "train": 1.0, "evaluate": 0.5} if number else {"round": 0.5},
    }


def with_pairs(entry: Line, values: np.ndarray) -> Line:
    """The line with S between clients, ``[L, E, N, N]``."""
    return entry | {"diagnostics": entry["diagnostics"] | {"similarity": values.tolist()}}


def write_run(path: Path, lines: list[Line], **overrides: Any) -> Path:
    """Write a result folder with these lines; default run config but for the overrides."""
    folder = RunFolder(path)
    folder.write_config(flat_config(**{"num-server-rounds": lines[-1]["round"]} | overrides))
    for each in lines:
        folder.append(each)
    return folder.path
