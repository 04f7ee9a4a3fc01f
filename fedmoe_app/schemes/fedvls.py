"""FedVLS: distillation on the classes that a client lacks, and suppression of wrong logits.

Guo et al., "Exploring Vacant Classes in Label-Skewed Federated Learning", AAAI 2025,
arXiv:2401.02329. With P_i the classes that client i has, O_i those that it lacks, p_i its label
frequencies, B the batch:

    loss_i = L + λ·KL(softmax_{c∈O_i}(z^g) ‖ softmax_{c∈O_i}(z)) + κ·S

    paper   L = CE(z, y)                   κ = 1
            S = Σ_{c∈P_i} p_i(c)·log mean_B( 1[y≠c]·e^{z_c} )
    code    L = CE(z + log(p_i + ε), y)    κ = 0.005,   ε = 10⁻⁹
            S = Σ_{c∈P_i} p_i(c)·log mean_B( e^{1[y≠c]·(z_c − log(C·(p_i(c) + ε)))} )

The authors' code (krumpguo/FedVLS; λ = 0.1 in its command for CIFAR-10) is the default form: it is
the one that their figures come from. In the paper's form a class that is right for the whole batch
has nothing to suppress and is left out; the code counts e^0 for right labels instead. A client that
has all classes distils nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.distil import masked_kl
from fedmoe_app.schemes.logitadjust import check_form
from fedmoe_app.schemes.parts import Client, OutputTerm, TaskLoss, TeacherTerm
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep

BUILT_IN = {"fedvls": "FedVLS"}
TRAITS = ("label-skew",)

EPSILON = 1e-9
_KAPPA = {"paper": 1.0, "code": 0.005}


@dataclass(frozen=True)
class PriorAdded(TaskLoss):
    """CE(z + log(p + ε), y)."""

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        return F.cross_entropy(step.logits + (_shares(step) + EPSILON).log(), step.labels)


@dataclass(frozen=True)
class VacantClasses(TeacherTerm):
    """λ·KL over the classes that the client lacks."""

    lam: float = 0.1

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the mean over the items; None if the client has all classes."""
        vacant = step.label_counts == 0  # [C]
        if not vacant.any():
            return None
        kept = vacant.expand_as(step.logits)
        return self.lam * masked_kl(step.teacher, step.logits, kept, kept, 1.0)


@dataclass(frozen=True)
class Suppression(OutputTerm):
    """κ·S; ``form`` is "paper" or "code"."""

    kappa: float
    form: str = "code"

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the term of the batch."""
        wrong = F.one_hot(step.labels, step.logits.shape[1]) == 0  # [I, C]
        shares, present = _shares(step), step.label_counts > 0
        if self.form == "paper":
            logits = step.logits.masked_fill(~wrong, -torch.inf)
            present = present & wrong.any(dim=0)
        else:
            balanced = step.logits - (len(shares) * (shares + EPSILON)).log()
            logits = balanced * wrong
        if not present.any():
            return None
        spread = logits[:, present].logsumexp(dim=0) - math.log(len(logits))
        return self.kappa * (shares[present] * spread).sum()


def _shares(step: LocalStep) -> Tensor:
    return step.label_counts / step.label_counts.sum()


@dataclass(frozen=True)
class FedVLS(Scheme):
    """FedVLS.

    Attributes:
        lam: λ, weight of the distillation; 0 leaves it out.
        kappa: κ, weight of the suppression; 0 leaves it out, −1 is that of the form.
        form: "code" or "paper".
    """

    lam: float = 0.1
    kappa: float = -1.0
    form: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedvls", lam=(self.lam, 0, 1e6), kappa=(self.kappa, -1, None))
        check_form("fedvls", self.form)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes."""
        run.needs_classes('scheme = "fedvls"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Put the loss together."""
        kappa = _KAPPA[self.form] if self.kappa < 0 else self.kappa
        distil = (VacantClasses(self.lam),) if self.lam else ()
        suppress = (Suppression(kappa, self.form),) if kappa else ()
        return Client(loss=PriorAdded() if self.form == "code" else None, terms=distil + suppress)
