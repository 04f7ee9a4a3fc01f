"""Versions of received states: which tensors, with which content, by hash.

A version is the hash (XXH3, 128 bits) of all names and content hashes; equal states have equal
versions on both sides, whoever works them out. Down travel, in the record ``task``::

    version       what the node has once it has put the message together
    base-version  what the tensors in ``arrays`` are to be laid over; "" = all are there
    dropped       names of the base that the version does not have: experts no longer held
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import xxhash
from flwr.app import Array, ArrayRecord

VERSION, BASE, DROPPED = "version", "base-version", "dropped"

# What an error reply of a node holds that cannot put the state together.
CANNOT_BUILD = "the received state cannot be put together"

_VERSION = re.compile(r"[0-9a-f]{32}")


def hashes(arrays: ArrayRecord) -> dict[str, str]:
    """Return the content hash of every array by its name."""
    return {name: _hash(array) for name, array in arrays.items()}


def version_of(by_name: Mapping[str, str]) -> str:
    """Return the version of a state, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for name in sorted(by_name):
        digest.update(f"{name}={by_name[name]};".encode())
    return digest.hexdigest()


def is_version(text: str) -> bool:
    """Whether this is a version: it becomes a file's name."""
    return bool(_VERSION.fullmatch(text))


def _hash(array: Array) -> str:
    digest = xxhash.xxh3_128(f"{array.stype} {array.dtype} {list(array.shape)} ".encode())
    digest.update(array.data)
    return digest.hexdigest()
