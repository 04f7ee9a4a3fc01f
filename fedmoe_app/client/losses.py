"""What an own part of the loss returns: a finite scalar with graph, or it is refused.

A float, or a tensor that was detached, would be added and train nothing; NaN would make every
tensor NaN, and the reply be rejected for its values without a word of where they came from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmoe_app.schemes.faults import PartError, shown
from fedmoe_app.schemes.parts import FeatureTerm, Logits, OutputTerm, RouterTerm, TaskLoss, Term
from fedmoe_app.schemes.views import LocalStep


def check_loss(part: Term | TaskLoss, value: object, step: LocalStep, read: Tensor) -> Tensor:
    """Return the loss of a part.

    Args:
        part: whose it is.
        value: what it returned.
        step: what it was shown.
        read: what tells whether training has diverged before: if it is not finite, NaN is no fault
            of the part.

    Raises:
        PartError: it is no scalar, not finite, or has no graph though what the part reads has one.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        allowed = "a scalar tensor with graph" + (", or None" if isinstance(part, Term) else "")
        raise PartError.of(part, "loss", f"returned {shown(value)}: must be {allowed}")
    number = float(value.detach())
    if not _is_finite(value) and _is_finite(read):
        raise PartError.of(part, "loss", f"returned {number}: must be finite")
    # A 0 without graph is "nothing", such as before the server has told anything.
    if not value.requires_grad and number and _reads_graph(part, step):
        raise PartError.of(
            part,
            "loss",
            f"returned {number} without graph, which would train nothing: work it out from what "
            "the step shows, without detach(), item() or torch.tensor()",
        )
    return value


def check_logits(part: Logits, value: object, step: LocalStep) -> Tensor:
    """Return the logits of a part.

    Raises:
        PartError: they are not of the shape of the model's, not finite though these are, or have
            no graph though the features have one.
    """
    if not isinstance(value, Tensor) or value.shape != step.logits.shape:
        raise PartError.of(
            part,
            "logits",
            f"returned {shown(value)}: must be a tensor of shape {list(step.logits.shape)}",
        )
    if not _is_finite(value) and _is_finite(step.logits):
        raise PartError.of(part, "logits", "returned NaN or infinity: must be finite")
    if not value.requires_grad and step.features.requires_grad:
        raise PartError.of(
            part, "logits", "returned logits without graph, which would train nothing"
        )
    return value


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def _reads_graph(part: Term | TaskLoss, step: LocalStep) -> bool:
    """Whether what a part of this kind reads depends on something that is trained."""
    if isinstance(part, TaskLoss | OutputTerm):
        return step.logits.requires_grad
    if isinstance(part, FeatureTerm):
        return step.features.requires_grad
    if isinstance(part, RouterTerm):
        return any(probs.requires_grad for probs in step.router_probs)
    return any(parameter.requires_grad for parameter in step.parameters.values())
