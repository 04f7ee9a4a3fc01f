"""Flower's secure aggregation: Shamir shares, key agreement and encryption between clients."""

from __future__ import annotations

from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

__all__ = [
    "bytes_to_public_key",
    "combine_shares",
    "create_shares",
    "decrypt",
    "encrypt",
    "generate_key_pairs",
    "generate_shared_key",
    "public_key_to_bytes",
]
