"""Bounds of the hyper-parameters that a scheme takes from ``scheme-args``."""

from __future__ import annotations

import math

from fedmoe_app.config.errors import ConfigError


def whole(scheme: str, **values: int) -> None:
    """Refuse what is no integer: counts, which slice and repeat.

    Raises:
        ConfigError: naming the scheme, the argument and its value.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{scheme}: {name} = {value!r}: must be a whole number, such as 3")


def decay(scheme: str, **values: float) -> None:
    """Refuse factors of a running mean outside [0, 1): with 1 it would never move.

    Raises:
        ConfigError: naming the scheme, the argument and its value.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{scheme}: {name} = {value!r}: must be a number")
        if not 0 <= value < 1:  # nor NaN
            raise ConfigError(f"{scheme}: {name} = {value}: must be at least 0 and below 1")


def in_range(scheme: str, **values: tuple[float, float, float | None]) -> None:
    """Refuse numbers outside their range, whose ends belong to it; None is no end.

    0 as the lower end means "above 0" where there is no upper one: rates and radii.

    Raises:
        ConfigError: naming the scheme, the argument, its value and the range.
    """
    for name, (value, low, high) in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ConfigError(f"{scheme}: {name} = {value!r}: must be a number")
        if high is None:
            if not (value > low if low == 0 else value >= low) or math.isinf(value):
                raise ConfigError(
                    f"{scheme}: {name} = {value}: must be {'above 0' if low == 0 else f'≥ {low}'}"
                )
        elif not low <= value <= high:
            raise ConfigError(f"{scheme}: {name} = {value}: choose {low} to {high}")
