"""AdamW that moves only some rows of a stack, each as if it were a parameter of its own.

PyTorch's AdamW leaves a *parameter* without gradient alone. A row of a parameter it moves in every
step, by weight decay and by the momentum of earlier steps, and it counts one step for all rows.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe_app.moe.training.stacks import ExpertStacks

_MOST_VALUES = 2**26  # of a stack that are stepped at once, which bounds what is needed beside it


class RowsAdamW(torch.optim.AdamW):
    """AdamW of whole parameters, and of the rows of expert stacks that a step reached."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        stacks: Sequence[ExpertStacks],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        """Take the plain parameters and the stacks, whose ``reached`` each step reads."""
        self._stacks = list(stacks)
        leaves = [p for layer in self._stacks for p in layer.trained.values()]
        super().__init__([*parameters, *leaves], lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the parameters, then the rows; the gradients stay."""
        held = [(p, p.grad) for layer in self._stacks for p in layer.trained.values()]
        for parameter, _ in held:
            parameter.grad = None
        result = super().step(closure)
        for parameter, gradient in held:
            parameter.grad = gradient
        for layer in self._stacks:
            self._step_rows(layer)
        return result

    def _step_rows(self, layer: ExpertStacks) -> None:
        """Step one layer's stacks."""
        group = self.param_groups[0]
        (beta1, beta2), lr = group["betas"], group["lr"]
        weights = [p for p in layer.trained.values() if p.grad is not None]
        if not weights:
            return
        moved = layer.reached.float()  # [C]
        # All stacks of a layer have the same rows moved, and so one count.
        first = self.state[weights[0]]
        steps = first["row_steps"] = first.get("row_steps", torch.zeros_like(moved)) + moved
        counted = steps.clamp_min(1)  # a row that never moved has moments of 0
        factors = torch.stack(
            [
                1 - lr * group["weight_decay"] * moved,
                (1 - beta1) * moved,
                (1 - beta2) * moved,
                lr * moved / _corrected(beta1, counted),
                _corrected(beta2, counted).rsqrt(),
            ]
        )
        for parameter in weights:
            state = self.state[parameter]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            _step(parameter, state, factors, group["eps"])


def _corrected(beta: float, steps: Tensor) -> Tensor:
    """Return 1 - beta^steps, in float32 without the loss of digits of a difference near 0."""
    return -torch.expm1(steps * math.log(beta))


def _step(parameter: nn.Parameter, state: dict[str, Any], factors: Tensor, eps: float) -> None:
    """Step a stack, by parts where it is large.

    Args:
        parameter: ``[C, ...]``, with its gradient.
        state: its moments.
        factors: on the rows, ``[5, C]``: 1 less the decay, the weights of the new first and second
            moment, the rate, and the correction of the second moment's root. A row that rests has
            1, 0, 0, 0.
        eps: of AdamW.
    """
    assert parameter.grad is not None
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    rows = max(1, _MOST_VALUES // parameter[0].numel())
    if rows >= parameter.shape[0]:
        _step_part(parameter, parameter.grad, mean, square, factors, eps)
        return
    for start in range(0, parameter.shape[0], rows):
        at = slice(start, start + rows)
        _step_part(parameter[at], parameter.grad[at], mean[at], square[at], factors[:, at], eps)


def _step_part(
    values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, factors: Tensor, eps: float
) -> None:
    """Step some rows; what lies between is in float32, as in PyTorch's fused kernel."""
    shape = (5, -1, *[1] * (values.dim() - 1))
    decay, first, second, rate, correction = factors.reshape(shape).unbind()
    mean.lerp_(gradient, first.to(mean.dtype))
    square.lerp_(gradient * gradient, second.to(square.dtype))
    size = (square.float().sqrt() * correction).add_(eps)
    values.mul_(decay).sub_(mean.float().div(size).mul_(rate))
