"""The two errors that everything a user got wrong ends in: in the run config, or in the data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the value and the choices."""


class ConfigError(ValueError):
    """A run config that cannot be used; the message names key, value and choices."""
