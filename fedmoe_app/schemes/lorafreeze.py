"""FFA-LoRA and RoLoRA: adapters of which one half is frozen, so that their average is exact.

A client's adapter is B_i·A_i. The mean of products is not the product of means, unless one half is
the same at all clients:

    ffalora   A stays as it was drawn; B is trained              mean(B_i·A) = mean(B_i)·A
    rolora    B in odd rounds, A in even ones                    mean(B·A_i) = B·mean(A_i)

FFA-LoRA: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
arXiv:2403.12313. RoLoRA: Chen et al., "Robust Federated Finetuning of LLMs via Alternating
Optimization of LoRA", arXiv:2409.02346.

Decisions: rounds with B come first, since B starts at 0 and leaves A without a gradient. Gates and
the head are trained in all rounds. Exact means: for the mean over a fixed set of weights; FedAvg's,
in which who did not train an expert counts as unchanged, is one. What is frozen still travels, as
zeros. FedEx-LoRA, which trains both halves, is :mod:`fedmoe_app.schemes.fedexlora`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Client, Freeze

BUILT_IN = {"ffalora": "FFALoRA", "rolora": "RoLoRA"}
TRAITS = ("adapters",)

_A, _B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class FrozenA(Freeze):
    """A is not trained."""

    def frozen(self, key: str, server_round: int) -> bool:
        """Whether it is an A."""
        return _A in key


@dataclass(frozen=True)
class InTurns(Freeze):
    """A is not trained in odd rounds, B not in even ones."""

    def frozen(self, key: str, server_round: int) -> bool:
        """Whether it is the half whose turn it is not."""
        return (_A if server_round % 2 else _B) in key


@dataclass(frozen=True)
class OfAdapters(Scheme):
    """A scheme that is FedAvg on adapters."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Scheme:
        """Refuse a run without adapters, where nothing would be frozen."""
        if config.model.train != "expert-lora" and not config.model.attention_lora:
            raise ConfigError(
                f'scheme = "{config.scheme}": model.train = "{config.model.train}" has no '
                'adapters; set model.train = "expert-lora"'
            )
        return cls(**config.scheme_kwargs)


@dataclass(frozen=True)
class FFALoRA(OfAdapters):
    """FFA-LoRA."""

    def client(self, model: ModelShape) -> Client:
        """Freeze A."""
        return Client(freeze=FrozenA())


@dataclass(frozen=True)
class RoLoRA(OfAdapters):
    """RoLoRA."""

    def client(self, model: ModelShape) -> Client:
        """Freeze A and B in turns."""
        return Client(freeze=InTurns())
