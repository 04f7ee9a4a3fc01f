"""A mean of the global models of several rounds as the one that is evaluated and saved.

With θ_t the global model after round t, from which the clients go on as ever,

    moving    θ̄_t = Σ_{s≤t} β^(t−s)·θ_s / Σ_{s≤t} β^(t−s)      an exponential moving average
    last      θ̄_t = mean of the last k of θ_1 .. θ_t

Polyak and Juditsky, 1992; for federated models, among others, Izmailov et al., SWA, 2018,
arXiv:1803.05407, and Jhunjhunwala et al., FedExP, ICLR 2023, arXiv:2301.09604, which reports the
mean of the last two. Where clients pull apart, the global model jumps from round to round around a
point that the mean is nearer to. Decisions: the sums are weighted to 1, so that the initial model
takes no part; β = 0 and k = 1 are the global model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, Server, Step
from fedmoe_app.schemes.views import Now

_ROUNDS = "rounds"  # a count in the state


@dataclass(frozen=True)
class MovingAverage(Step):
    """An exponential moving average of the models so far.

    Attributes:
        beta: β, at least 0 and below 1.
    """

    beta: float = 0.5

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Begin with nothing: the first model becomes the mean."""
        means = {f"mean.{key}": torch.zeros_like(value) for key, value in values.items()}
        return {_ROUNDS: torch.zeros(())} | means

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return mean − model, and the mean."""
        rounds = state[_ROUNDS] + 1
        share = (1 - self.beta) / (1 - self.beta ** float(rounds))  # 1 in the first
        means = {
            key: torch.lerp(state[f"mean.{key}"], value, share) for key, value in now.values.items()
        }
        change = {key: mean - now.values[key] for key, mean in means.items()}
        return change, {_ROUNDS: rounds} | {f"mean.{key}": mean for key, mean in means.items()}


@dataclass(frozen=True)
class LastModels(Step):
    """The mean of the last models.

    Attributes:
        number: k, at least 1; k − 1 models are kept.
    """

    number: int = 2

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Begin with none."""
        return {_ROUNDS: torch.zeros(())} | {
            f"{back}.{key}": torch.zeros_like(value)
            for back in range(1, self.number)
            for key, value in values.items()
        }

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return mean − model, and the last k − 1 models."""
        known = min(int(state[_ROUNDS]) + 1, self.number)  # models that there are
        kept: Tensors = {_ROUNDS: state[_ROUNDS] + 1}
        change = {}
        for key, value in now.values.items():
            models = [value, *(state[f"{back}.{key}"] for back in range(1, self.number))]
            change[key] = torch.stack(models[:known]).mean(dim=0) - value
            kept |= {f"{back}.{key}": models[back - 1] for back in range(1, self.number)}
        return change, kept


@dataclass(frozen=True)
class Averaged(Scheme):
    """Any scheme, whose reported model is a mean of its global ones.

    Attributes:
        scheme: whose everything else is.
        of: "moving" or "last".
        beta: β of the moving average.
        models: k of the last ones.
    """

    scheme: Scheme
    of: str = "moving"
    beta: float = 0.5
    models: int = 2

    def check(self, run: Run) -> Sequence[str]:
        """Let the scheme check itself."""
        return self.scheme.check(run)

    def client(self, model: ModelShape) -> Client:
        """Return the scheme's half."""
        return self.scheme.client(model)

    def server(self, model: ModelShape) -> Server:
        """Report the mean of what the scheme would report."""
        half = self.scheme.server(model)
        if half.after:
            raise ValueError(
                f'average.of = "{self.of}": after the run {type(half.after[0]).__name__} moves the '
                'global model once, which a mean would undo; choose average.of = "none", or '
                'head.closed-form = "before" or "every-round"'
            )
        part = MovingAverage(self.beta) if self.of == "moving" else LastModels(self.models)
        return replace(half, reported=(*half.reported, part))
