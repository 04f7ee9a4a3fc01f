"""The routing statistics of an update as one buffer, and their validation.

Layout: ``count`` and ``trained`` ``[L, E]`` and ``tokens`` ``[L]``, each as one byte that tells its
width and unsigned integers of that width; then ``prob``, ``margin``, ``peak`` and ``kl`` ``[L, E]``
and, where the scheme reads it, ``region`` ``[M, D]`` of the M trained experts in order of layer and
expert. With a lossless codec these are float32; otherwise float16, and ``region``, which has no
bound, bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.wire.bounds import MAX_TOKENS
from fedmoe_app.wire.codecs.floats import from_raw, raw_bytes
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.spec import UpdateSpec

_COUNTS = ("count", "trained", "tokens")
_MEANS = ("prob", "margin", "peak", "kl")
_MAX_REGION = 1e9  # of a router's input; its square and sums of squares stay finite in float32
_ROUNDING = 1e-3  # of probabilities that travel in float16
_WIDTHS = (1, 2, 4, 8)  # bytes of an unsigned integer


def pack_routing(routing: RoutingStats, lossless: bool) -> bytes:
    """Encode statistics."""
    means, regions = _types(lossless)
    parts = [_pack_counts(getattr(routing, name)) for name in _COUNTS]
    parts += [raw_bytes(getattr(routing, name).to(means)) for name in _MEANS]
    if routing.region is not None:
        parts.append(raw_bytes(routing.region[routing.trained > 0].to(regions)))  # [M, D]
    return b"".join(parts)


def max_routing(spec: UpdateSpec) -> int:
    """Return how long the buffer can be."""
    cells = spec.num_layers * spec.num_experts
    numbers = 2 * cells + spec.num_layers
    return len(_COUNTS) + 8 * numbers + 4 * cells * (len(_MEANS) + spec.region_size)


def unpack_routing(data: memoryview, spec: UpdateSpec, lossless: bool) -> RoutingStats:
    """Decode and check statistics.

    Raises:
        InvalidUpdateError: if lengths do not fit, or no set of tokens can have these statistics.
    """
    shape = (spec.num_layers, spec.num_experts)
    means, regions = _types(lossless)
    tensors: dict[str, Tensor] = {}
    for name in _COUNTS:
        of_name = shape[:1] if name == "tokens" else shape
        tensors[name], data = _unpack_counts(data, of_name, name)
    for name in _MEANS:
        tensors[name], data = _unpack_floats(data, shape, means, name)
    _check_values(tensors)
    _check_tokens(tensors)
    _check_leads(tensors)
    trained = tensors["trained"] > 0
    region = None
    if spec.region_size:
        wanted = (int(trained.sum()), spec.region_size)
        packed, data = _unpack_floats(data, wanted, regions, "region")
        if bool((packed.abs() > _MAX_REGION).any()):
            raise InvalidUpdateError(f"routing.region: a value beyond {_MAX_REGION:g}")
        region = torch.zeros(*shape, spec.region_size)  # [L, E, D]
        region[trained] = packed
    if data:
        raise InvalidUpdateError(f"routing: {len(data)} bytes too many", "size")
    return RoutingStats(**tensors, region=region)


def check_counts(routing: RoutingStats, tokens: int, top_k: int, steps: int) -> None:
    """Refuse counts that no client with this many examples can have.

    Args:
        routing: decoded.
        tokens: that a layer can have seen at most.
        top_k: experts that a token uses; 0 if not known.
        steps: optimiser steps of the round.

    Raises:
        InvalidUpdateError: naming the number and its bound.
    """
    seen = routing.tokens  # [L]
    if bool((seen > tokens).any()):
        raise InvalidUpdateError(
            f"routing.tokens = {int(seen.max())}: the client's examples have at most {tokens}"
        )
    if top_k and bool((routing.count.sum(dim=1) > top_k * seen).any()):
        raise InvalidUpdateError(f"routing.count: more than {top_k} experts a token")
    if bool((routing.trained > steps).any()):
        raise InvalidUpdateError(
            f"routing.trained = {int(routing.trained.max())}: the round has {steps} steps"
        )


def _types(lossless: bool) -> tuple[torch.dtype, torch.dtype]:
    """Return the types of the means and of the regions."""
    return (torch.float32, torch.float32) if lossless else (torch.float16, torch.bfloat16)


def _pack_counts(counts: Tensor) -> bytes:
    values = counts.cpu().numpy()
    largest = int(values.max(initial=0))
    width = next(width for width in _WIDTHS if largest < 2 ** (8 * width) or width == 8)
    return bytes([width]) + values.astype(f"<u{width}").tobytes()


def _unpack_counts(
    data: memoryview, shape: tuple[int, ...], name: str
) -> tuple[Tensor, memoryview]:
    """Return integers int64 and the data behind them."""
    width = data[0] if data else 0
    if width not in _WIDTHS:
        raise InvalidUpdateError(f"routing.{name}: integers of {width} bytes", "size")
    taken, rest = _take(data[1:], width * int(np.prod(shape)), name)
    values = np.frombuffer(taken, f"<u{width}")
    if values.size and int(values.max()) >= 2**63:
        raise InvalidUpdateError(f"routing.{name}: a count of 2^63 or more")
    return torch.from_numpy(values.astype(np.int64)).view(shape), rest


def _unpack_floats(
    data: memoryview, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> tuple[Tensor, memoryview]:
    """Return finite values float32 and the data behind them."""
    taken, rest = _take(data, dtype.itemsize * int(np.prod(shape)), name)
    tensor = from_raw(taken, dtype).float().view(shape)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InvalidUpdateError(
            f"routing.{name}: {bad} of {tensor.numel()} values are NaN or infinite"
        )
    return tensor, rest


def _take(data: memoryview, size: int, name: str) -> tuple[memoryview, memoryview]:
    if len(data) < size:
        raise InvalidUpdateError(
            f"routing.{name}: {len(data)} bytes of data left, expected {size}", "size"
        )
    return data[:size], data[size:]


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    # Sums of probabilities may round a little past 1; the mean of p·log(p/mean p) is at most 1/e.
    for name in ("prob", "margin", "peak", "kl"):
        if bool((tensors[name] < 0).any()) or bool((tensors[name] > 1.001).any()):
            raise InvalidUpdateError(f"routing.{name}: outside 0 to 1")
    if bool(((tensors["trained"] > 0) & (tensors["count"] == 0)).any()):
        raise InvalidUpdateError("routing.trained: an expert was trained that got no token")


def _check_tokens(routing: Mapping[str, Tensor]) -> None:
    """Refuse a histogram that no set of tokens can have: schemes weigh clients by it."""
    tokens = routing["tokens"]  # [L]
    if bool((tokens > MAX_TOKENS).any()):
        raise InvalidUpdateError(
            f"routing.tokens = {int(tokens.max())}: more than the {MAX_TOKENS} allowed"
        )
    if bool((routing["count"] > tokens.unsqueeze(1)).any()):
        raise InvalidUpdateError("routing.count: an expert got more tokens than there were")
    # Means of probabilities that sum to 1 for every token; 0 in a layer that saw none.
    total = routing["prob"].double().sum(dim=1)  # [L]
    if bool(((total - (tokens > 0).double()).abs() > 0.01).any()):
        raise InvalidUpdateError("routing.prob: a layer's probabilities do not sum to 1")


def _check_leads(routing: Mapping[str, Tensor]) -> None:
    """Refuse a lead over the other experts that is more than the probability that it is part of."""
    if bool((routing["margin"] > routing["prob"] + _ROUNDING).any()):
        raise InvalidUpdateError("routing.margin: an expert leads by more than its probability")
    if bool((routing["peak"] < routing["prob"] - _ROUNDING).any()):
        raise InvalidUpdateError("routing.peak: below the mean probability")
