"""Values as whole numbers modulo 2^32 or 2^64, which add up exactly, and the masks on them.

A masked value must look like any other, and masks must cancel to the last bit: so values are
rounded to a grid that all clients share, times a small integer weight, and added modulo a power of
two. Masks are key streams of AES-256-CTR; each key is derived (HKDF-SHA256) for one purpose, so
that no stream is ever used twice.

Flower's own ``pseudo_rand_gen`` is not used: it folds a key into 32 bits of a Mersenne twister's
seed, of which 28 are free, and a search over them finds an update in minutes. Its ``quantize``
takes no weights.
"""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

MAX_WEIGHT = 40  # units of a client's weight: more would leave fewer bits for the values
NUMBER_BITS = 26  # after the binary point of statistics, in 64 bits
Ring = NDArray[np.unsignedinteger]  # uint32 or uint64: both wrap around


def weight_of(num_examples: int, unit: int) -> int:
    """Return a client's weight in units of so many examples, 1 to 40."""
    return min(MAX_WEIGHT, max(1, math.ceil(num_examples / unit)))


def value_bits(num_clients: int) -> int:
    """Return b so that the sum of so many weighted values below 1 stays below 2^31 on a 2^-b grid.

    Raises:
        ValueError: too many clients for any use.
    """
    bits = math.floor(math.log2((2**31 - 1) / (MAX_WEIGHT * num_clients)))
    if bits < 8:
        raise ValueError(f"{num_clients} clients in one masked sum: ask for fewer in a round")
    return bits


def to_ring(
    values: NDArray[np.floating], limit: float, weight: int, bits: int, seed: tuple[int, ...]
) -> NDArray[np.uint32]:
    """Return w·x on the grid, rounded at random to the next point below or above, without bias.

    Args:
        values: x, cut to ±limit.
        limit: the range.
        weight: w, 1 to 40.
        bits: of the grid over the range.
        seed: of the rounding, which needs to be no secret; the same in a repeated round.
    """
    scaled = np.clip(values.astype(np.float64) / limit, -1, 1) * (weight * 2.0**bits)
    rounded = np.floor(scaled + np.random.default_rng(seed).random(scaled.shape))
    return rounded.astype(np.int64).astype(np.uint32)


def from_ring(total: NDArray[np.uint32], limit: float, bits: int) -> NDArray[np.float64]:
    """Return Σ w·x of a sum on the grid."""
    return total.astype(np.int32).astype(np.float64) * (limit / 2.0**bits)


def numbers_to_ring(numbers: NDArray[np.floating], num_clients: int) -> NDArray[np.uint64]:
    """Return numbers with 26 binary places modulo 2^64.

    Raises:
        ValueError: the sum of so many such numbers could wrap around.
    """
    most = 2.0 ** (62 - NUMBER_BITS) / num_clients
    if numbers.size and not np.abs(numbers).max() <= most:
        raise ValueError(f"a number to sum of {np.abs(numbers).max():.3g}: at most {most:.3g}")
    scaled = np.rint(numbers.astype(np.float64) * 2.0**NUMBER_BITS)
    return scaled.astype(np.int64).astype(np.uint64)


def numbers_from_ring(total: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the sum of numbers."""
    return total.astype(np.int64).astype(np.float64) / 2.0**NUMBER_BITS


def key_stream(secret: bytes, context: bytes, like: Ring) -> Ring:
    """Return a mask of the size and type of ``like``.

    Args:
        secret: that a client has alone, or with one other.
        context: run, round and what is summed.
        like: the vector.
    """
    key = HKDF(hashes.SHA256(), 32, None, b"fedmoe sum " + context).derive(secret)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(like.nbytes)), like.dtype)
