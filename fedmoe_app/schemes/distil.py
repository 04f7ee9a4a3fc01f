"""Distillation from the received model over a part of the classes; three schemes take from it.

    KL(softmax(z^g / T) ‖ softmax(z / T))      with some classes left out of either softmax

z^g are the logits of the received model, without gradient (``step.teacher``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_kl(
    teacher: Tensor, logits: Tensor, of_teacher: Tensor, of_logits: Tensor, temperature: float
) -> Tensor:
    """Return T²·KL(teacher ‖ logits), the mean over the items, a scalar with graph.

    An item whose teacher has no class left counts as 0.

    Args:
        teacher, logits: ``[I, C]``.
        of_teacher: classes that the teacher's softmax runs over, ``[I, C]`` bool.
        of_logits: those of the other softmax; all of the teacher's are among them.
        temperature: T > 0.
    """
    log_p = _log_softmax(teacher / temperature, of_teacher)
    log_q = _log_softmax(logits / temperature, of_logits)
    # 0·log 0 = 0, and no gradient of what is left out.
    pointwise = torch.where(of_teacher, log_p.exp() * (log_p - log_q), 0.0)
    return temperature**2 * pointwise.sum(dim=1).mean()


def _log_softmax(logits: Tensor, kept: Tensor) -> Tensor:
    """Return log-probabilities over the kept classes; finite also where none is kept."""
    lowest = torch.finfo(logits.dtype).min / 4
    return torch.where(kept, logits, lowest).log_softmax(dim=1)
