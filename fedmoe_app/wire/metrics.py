"""The metrics that a client may send beside its counts: names and ranges. No other is taken.

What a name means stands where it is made: :mod:`fedmoe_app.client.round`, ``keeping``,
``personal``, ``sending`` and ``stopwatch``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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
EXPERT_BUDGET = "expert-budget"  # experts a layer that a client can train
PHASES = ("download", "start", "load", "data", "apply", "evaluate", "train", "encode", CPU)


@dataclass(frozen=True)
class Range:
    """What a metric may be: ``lowest`` to ``highest``, a whole number or not."""

    lowest: float
    highest: float
    whole: bool = False


_LOSS, _SHARE = Range(-MAX_LOSS, MAX_LOSS), Range(0, 1)
# The highest value depends on the round and on the client's examples: see `check_metrics`.
_COUNT = Range(0, math.inf, whole=True)


@dataclass(frozen=True)
class Metric:
    """A number that a client tells of itself: all that is known of it, from wire to report.

    Attributes:
        name: in the reply.
        allowed: its range.
        kind: what it is in ``metrics.jsonl``, under its name with underscores: a number, a whole
            number or a flag; "" leaves it out.
        title: of its column in the report's table of clients; "" leaves it out. ``{metric}`` stands
            for what accuracy means for the task.
        tracked: whether experiment trackers get it.
    """

    name: str
    allowed: Range
    kind: Literal["", "number", "whole", "flag"] = "number"
    title: str = ""
    tracked: bool = False

    @property
    def column(self) -> str:
        """Its key in ``metrics.jsonl``."""
        return self.name.replace("-", "_")

    def value(self, metrics: Mapping[str, float]) -> float | int | bool | None:
        """Return its value among a client's metrics; None where the client does not tell it."""
        value = metrics.get(self.name)
        if value is None or self.kind == "number":
            return value
        return int(value) if self.kind == "whole" else bool(value)


_NUM_STEPS, _NUM_TRUNCATED, NUM_TEST_ITEMS = "num-steps", "num-truncated", "num-test-items"
_ROUNDS = ("kept-round", "residual-round")
_EXPERTS = Range(0, _MAX_EXPERTS, whole=True)
# In the order of the report's columns. A new one needs a line here, and the client that tells it.
METRICS = (
    Metric(_NUM_TRUNCATED, _COUNT, title="texts cut"),
    Metric("train-loss", _LOSS, title="training loss", tracked=True),
    Metric("loss", _LOSS, tracked=True),
    Metric("accuracy", _SHARE, title="own {metric} before", tracked=True),
    Metric("local-loss", _LOSS, tracked=True),
    Metric("local-accuracy", _SHARE, title="own {metric} after", tracked=True),
    Metric("personal-accuracy", _SHARE, title="personal model", tracked=True),
    Metric("mixing-gate", _SHARE, title="mixing gate"),
    Metric(EXPERT_BUDGET, _EXPERTS, "whole", title="expert budget"),
    Metric("experts-held", _EXPERTS, "whole"),
    Metric(_NUM_STEPS, _COUNT, "whole"),
    Metric(NUM_TEST_ITEMS, _COUNT, ""),
    *(Metric(name, _COUNT, "whole") for name in _ROUNDS),
    Metric("state-stored", Range(0, 1, whole=True), "flag"),
    *(Metric(f"{PREFIX}{phase}", Range(0, _MAX_SECONDS), "") for phase in PHASES),
)
_BY_NAME = {metric.name: metric for metric in METRICS}
NAMES = frozenset(_BY_NAME)
COLUMNS = tuple(metric for metric in METRICS if metric.kind)


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
        highest = whole.get(name)
        known = _BY_NAME[name].allowed
        _check(name, value, known if highest is None else replace(known, highest=highest))
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
