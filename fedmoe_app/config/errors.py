"""The one error type that all bad data ends in."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the value and the choices."""
