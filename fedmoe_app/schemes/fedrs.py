"""FedRS: the logits of classes that a client lacks are restricted, so that it pushes them less.

Li and Zhan, "FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID
Data", KDD 2021, eq. 5:

    loss_i(x, y) = CE(a_i ⊙ z(x), y)

    paper   a_i(c) = 1 where the client has class c, else α
    code    a_i(c) = α + (1 − α)·n_i(c) / max_c n_i(c)

α = 1 is FedAvg bit for bit. Prediction uses z alone. Decision: the paper's form is the default; the
authors' code (lxcnju/FedRepo) grades it by frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.logitadjust import check_form
from fedmoe_app.schemes.parts import Client, TaskLoss
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep

BUILT_IN = {"fedrs": "FedRS"}
TRAITS = ("label-skew",)


@dataclass(frozen=True)
class RestrictedSoftmax(TaskLoss):
    """CE(a ⊙ z, y); ``form`` is "paper" or "code"."""

    alpha: float = 0.5
    form: str = "paper"

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        share = step.label_counts / step.label_counts.max()  # [C]
        if self.form == "paper":
            share = (share > 0).float()
        return F.cross_entropy((self.alpha + (1 - self.alpha) * share) * step.logits, step.labels)


@dataclass(frozen=True)
class FedRS(Scheme):
    """FedRS.

    Attributes:
        alpha: α; 1 is FedAvg.
        form: "paper" or "code".
    """

    alpha: float = 0.5
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedrs", alpha=(self.alpha, 0, 1))
        check_form("fedrs", self.form)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes."""
        run.needs_classes('scheme = "fedrs"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Restrict the softmax."""
        return Client(loss=RestrictedSoftmax(self.alpha, self.form) if self.alpha != 1 else None)
