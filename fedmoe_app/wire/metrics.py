"""The metrics that a client may send beside its counts: names and ranges. No other is taken.

What a name means stands where it is made: :mod:`fedmoe_app.client.round`, ``keeping``,
``personal``, ``sending`` and ``stopwatch``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError

# Cross-entropy in nats. It has no bound of its own; a model that got here has long diverged.
MAX_LOSS = 1e9
# Whole seconds of a phase; ``download`` compares two clocks, one of which may be off by decades.
_MAX_SECONDS = 1e10
_MAX_EXPERTS = 10**6  # of a layer, or of a model

PREFIX = "seconds-"  # of the names in a reply's metrics
CPU = "cpu"
PHASES = ("download", "start", "load", "data", "apply", "evaluate", "train", "encode", CPU)


@dataclass(frozen=True)
class Range:
    """What a metric may be: ``lowest`` to ``highest``, a whole number or not."""

    lowest: float
    highest: float
    whole: bool = False


_LOSS, _SHARE = Range(-MAX_LOSS, MAX_LOSS), Range(0, 1)
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("train-loss", "loss", "local-loss"), _LOSS),
    **dict.fromkeys(("accuracy", "local-accuracy", "personal-accuracy", "mixing-gate"), _SHARE),
    **dict.fromkeys(("expert-budget", "experts-held"), Range(0, _MAX_EXPERTS, whole=True)),
    "state-stored": Range(0, 1, whole=True),
    **{f"{PREFIX}{phase}": Range(0, _MAX_SECONDS) for phase in PHASES},
}
# Ranges of these depend on the round and on the client's examples.
_NUM_STEPS, _NUM_TRUNCATED, NUM_TEST_ITEMS = "num-steps", "num-truncated", "num-test-items"
_ROUNDS = ("kept-round", "residual-round")
NAMES = frozenset({*_RANGES, _NUM_STEPS, _NUM_TRUNCATED, NUM_TEST_ITEMS, *_ROUNDS})


def check_metrics(
    metrics: Mapping[str, Any], bounds: TaskBounds, num_examples: int, server_round: int
) -> dict[str, float]:
    """Return a client's own metrics as floats.

    Args:
        metrics: by name, without the counts of ``wire.replies``.
        bounds: what the task can have.
        num_examples: the client's training examples.
        server_round: that the reply answers.

    Raises:
        InvalidUpdateError: of kind ``metrics``: an unknown name, or a value that is no number, not
            finite or out of its range.
    """
    if strange := [name for name in metrics if name not in NAMES]:
        raise InvalidUpdateError(
            f"{len(strange)} unknown metrics, the first is {shown(strange[0])}", "metrics"
        )
    whole = {
        _NUM_STEPS: bounds.steps(num_examples),
        _NUM_TRUNCATED: num_examples,
        NUM_TEST_ITEMS: bounds.test_items(num_examples),
        **dict.fromkeys(_ROUNDS, max(0, server_round - 1)),
    }
    for name, value in metrics.items():
        allowed = _RANGES[name] if name in _RANGES else Range(0, whole[name], whole=True)
        _check(name, value, allowed)
    return {name: float(value) for name, value in metrics.items()}


def _check(name: str, value: Any, allowed: Range) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidUpdateError(
            f"metric {name!r} = {shown(value)}: must be a finite number", "metrics"
        )
    if allowed.whole and value != int(value):
        raise InvalidUpdateError(
            f"metric {name!r} = {shown(value)}: must be a whole number", "metrics"
        )
    if not allowed.lowest <= value <= allowed.highest:
        raise InvalidUpdateError(
            f"{name} = {shown(value)}: must be {allowed.lowest:.12g} to {allowed.highest:.12g}",
            "metrics",
        )


def seconds_by_phase(metrics: dict[str, float]) -> dict[str, float]:
    """Return the phases that a reply tells of, in its order; the reverse of ``metrics``."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in metrics.items()
        if name.startswith(PREFIX)
    }
