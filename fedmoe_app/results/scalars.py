"""The numbers of a round under standard names, for TensorBoard, Weights & Biases and MLflow.

Slashes group the names in all three: ``global/accuracy``, ``bytes/up``, ``client/3/accuracy``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedmoe_app.results.values import to_array
from fedmoe_app.shown.tags import tag

# Name: key of the metrics line (fedmoe_app/results/metrics.py).
OF_THE_ROUND = {
    "global/accuracy": "accuracy",
    "global/loss": "loss",
    "train/loss": "train_loss",
    "bytes/up": "bytes_up",
    "bytes/down": "bytes_down",
    "clients/replied": "num_clients",
}
# Name below client/N/: key of the client's entry.
OF_A_CLIENT = {
    "accuracy": "accuracy",
    "loss": "loss",
    "local_accuracy": "local_accuracy",
    "local_loss": "local_loss",
    "personal_accuracy": "personal_accuracy",
    "train_loss": "train_loss",
    "bytes_up": "bytes_up",
    "experts_sent": "experts_sent",
}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a metrics line by standard name.

    ``client/N/accuracy`` is that of the received global model on the client's own test data,
    ``client/N/local_accuracy`` that after its local training. ``scheme/conflict`` and others are
    means over all experts of diagnostics ``[L, E]``.
    """
    found = dict(_all(line))
    return {tag(name): float(value) for name, value in found.items() if _is_number(value)}


def _all(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    trained = line["round"] != 0
    for name, key in OF_THE_ROUND.items():
        if trained or name.startswith("global/"):
            yield name, line.get(key)
    if trained:
        failures = line.get("failures") or ()
        yield "clients/failed", sum(failure["who"] != "round" for failure in failures)
    for name, seconds in (line.get("seconds") or {}).items():
        yield f"seconds/{name}", seconds
    for client in line.get("clients") or ():
        for name, key in OF_A_CLIENT.items():
            yield f"client/{client['client']}/{name}", client.get(key)
    for key in ("conflict", "kappa", "similarity_mean", "agreement_mean"):
        values = to_array((line.get("diagnostics") or {}).get(key))
        if values.ndim and np.isfinite(values).any():
            yield f"scheme/{key}", float(np.nanmean(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
