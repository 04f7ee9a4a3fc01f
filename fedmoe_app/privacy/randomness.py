"""Noise and draws that nobody can repeat: from the operating system, never from the run's seed.

The seed stands in the run config, so that whoever has it could subtract the noise; and who was
drawn must not be known to those who get the model.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_BITS = 53  # of a float64 between 0 and 1


class Randomness(Protocol):
    """Where draws and noise come from; tests bring one with a seed."""

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return numbers above 0 up to 1, ``[size]``."""

    def normal(self, size: int) -> NDArray[np.float64]:
        """Return numbers of the standard normal distribution, ``[size]``."""


class OfSystem:
    """The operating system's cryptographic randomness.

    Normal numbers are those of Box and Muller, 1958, in float64. Their lowest bits are not those of
    the real distribution (Mironov, CCS 2012); rounding the sum to float32 hides most of that.
    """

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return numbers above 0 up to 1, ``[size]``."""
        whole = np.frombuffer(os.urandom(8 * size), "<u8") >> np.uint64(64 - _BITS)
        return np.asarray((whole + np.uint64(1)) * 2.0**-_BITS, np.float64)

    def normal(self, size: int) -> NDArray[np.float64]:
        """Return numbers of the standard normal distribution, ``[size]``."""
        half = -(-size // 2)
        radius = np.sqrt(-2 * np.log(self.uniform(half)))
        angle = 2 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
