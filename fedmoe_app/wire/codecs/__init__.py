"""The codecs of updates by name, and which of them a node answers in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedmoe_app.config.names import CODEC_NAMES, TOPK, check_codec
from fedmoe_app.wire.codecs.base import Codec
from fedmoe_app.wire.codecs.floats import Float
from fedmoe_app.wire.codecs.int4 import Int4
from fedmoe_app.wire.codecs.int8 import Int8
from fedmoe_app.wire.codecs.topk import DEFAULT_SHARE, TopK

__all__ = ["CODEC_NAMES", "FP16", "FP32", "Codec", "Offer", "choose", "make_codec"]

FP32 = Float("fp32", torch.float32)
FP16 = Float("fp16", torch.float16)
_PLAIN: dict[str, Codec] = {
    codec.name: codec for codec in (FP32, FP16, Float("bf16", torch.bfloat16), Int8(), Int4())
}


@dataclass(frozen=True)
class Offer:
    """What the server says of the encoding of replies.

    Attributes:
        codecs: those that it takes, the one that it wants first.
        topk_share: share of the values that ``topk`` keeps.
        error_feedback: add what encoding lost to the next update.
    """

    codecs: tuple[str, ...] = (FP32.name,)
    topk_share: float = DEFAULT_SHARE
    error_feedback: bool = True

    @property
    def keeps_residuals(self) -> bool:
        """Whether nodes may keep what encoding lost."""
        return self.error_feedback and any(name != FP32.name for name in self.codecs)


def make_codec(name: str, topk_share: float = DEFAULT_SHARE) -> Codec:
    """Return the codec of this name.

    Args:
        name: one of :data:`CODEC_NAMES`.
        topk_share: share of the values that ``topk`` keeps.

    Raises:
        ValueError: if there is none; it lists the choices.
    """
    first, _, second = check_codec(name).partition("+")
    if first != TOPK:
        return _PLAIN[first]
    return TopK(_PLAIN[second] if second else FP32, topk_share)


def choose(offer: Offer, own: str | None = None) -> Codec | None:
    """Return what a node answers in; None if it knows none of the codecs that are offered.

    Args:
        offer: the server's.
        own: the codec that the node's config names; it counts where the server takes it.
    """
    wanted = (own, *offer.codecs) if own in offer.codecs else offer.codecs
    known = [name for name in wanted if name in CODEC_NAMES]
    return make_codec(known[0], offer.topk_share) if known else None
