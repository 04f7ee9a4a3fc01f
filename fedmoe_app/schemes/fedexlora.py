"""FedEx-LoRA: the mean of the clients' adapters is exact, by a residual that the server keeps.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models", arXiv:2410.09432. Averaging A and B by themselves gives B̄·Ā, and not the mean of the
clients' B_i·A_i. The paper adds the rest to the frozen weights:

    W_0 ← W_0 + mean(B_i·A_i) − B̄·Ā

Here W_0 stays as it is on every node, with its fingerprint: the rest is summed up in a matrix R
``[out, in]`` of its own beside A and B, which no client trains, so that an expert's map is
W_0·x + (α/r)·(B·A + R)·x. With dA_i and dB_i the clients' changes, and w_i = n_i / Σ n,

    R ← R + Σ_i w_i·dB_i·dA_i − (Σ_i w_i·dB_i)·(Σ_i w_i·dA_i)

which is the same: all terms with the received A and B cancel, also those of clients that did not
train the expert. A client adds to sums alone, so replies need not wait for each other.

Decisions: w_i by examples, as FedAvg's, where the paper has 1/N; adapters of the experts. R is sent
down, as large as the adapted weights, and nothing of it up. The paper's variants (the residual cut
to a rank) are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import RESIDUAL, Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.lorafreeze import OfAdapters
from fedmoe_app.schemes.parts import Scaled, Server, Summed
from fedmoe_app.schemes.views import Block, Reply

BUILT_IN = {"fedexlora": "FedExLoRA"}
TRAITS = ("adapters", "residual")

_A, _B = ".lora_A", ".lora_B"
_OF = "of"  # Σ n


@dataclass(frozen=True)
class ExactMean(Summed):
    """The mean of an expert's adapters, with what it lacks to the mean of their products."""

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add n times every change, n·dB·dA of every map with adapters, and n."""
        n, change = reply.num_examples, reply.change(block) or {}
        sums: dict[str, Scaled | float] = {_OF: n}
        sums |= {name: Scaled(n, value) for name, value in change.items()}
        for name in _maps(change):
            a, b = change[name + _A], change[name + _B]  # [r, in], [out, r]
            sums[name + RESIDUAL] = Scaled(n, b @ a)
        return sums

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Divide by Σ n; take the product of the means from the mean of the products."""
        change = {name: total / sums[_OF] for name, total in sums.items() if name != _OF}
        for name in _maps(change):
            change[name + RESIDUAL] -= change[name + _B] @ change[name + _A]
        return change


def _maps(names: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the maps that have adapters."""
    yield from [name.removesuffix(_A) for name in names if name.endswith(_A)]


@dataclass(frozen=True)
class FedExLoRA(OfAdapters):
    """FedEx-LoRA on the experts' adapters."""

    @classmethod
    def from_config(cls, config: RunConfig) -> Scheme:
        """Refuse a run without adapters on the experts, or with some that have no residual."""
        if config.model.train != "expert-lora" or config.model.attention_lora:
            raise ConfigError(
                f'scheme = "{config.scheme}": the residual is one of the experts\' adapters; set '
                'model.train = "expert-lora" and model.attention-lora = false'
            )
        return super().from_config(config)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse replies to older adapters: with them the residual is another."""
        if run.buffered:
            raise ConfigError(
                'rounds = "buffered": the residual of scheme = "fedexlora" is exact only for '
                'clients that start from the same adapters; choose rounds = "sync"'
            )
        return ()

    def server(self, model: ModelShape) -> Server:
        """Average experts exactly."""
        return Server(experts=ExactMean())
