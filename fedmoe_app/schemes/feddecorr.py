"""FedDecorr: features are kept from collapsing into few dimensions.

Shi et al., "Towards Understanding and Mitigating Dimensional Collapse in Heterogeneous Federated
Learning", ICLR 2023, arXiv:2210.00226, eq. 7. With X the batch's features, each dimension less its
mean and divided by its standard deviation, and K = Xᵀ·X / B, ``[D, D]``:

    paper   loss_i + β·‖K‖²_F / D²
    code    loss_i + β·B·Σ_{j≠k} K_jk² / (D·(D−1))

The code's form (their FedDecorrLoss: the mean of the squared off-diagonal entries of XᵀX, divided
by B; standard deviations with B − 1) is B times as strong; the diagonal is constant. β = 0 is
FedAvg bit for bit. Decisions: the paper's form is the default; the features are what the
classification head sees (with label words: the output embeddings); a batch of one example adds
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.logitadjust import check_form
from fedmoe_app.schemes.parts import Client, FeatureTerm
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep

BUILT_IN = {"feddecorr": "FedDecorr"}
TRAITS = ("label-skew",)

_EPSILON = 1e-8  # added to a variance


@dataclass(frozen=True)
class Decorrelate(FeatureTerm):
    """β times the correlations of the batch's features; ``form`` is "paper" or "code"."""

    beta: float = 0.1
    form: str = "paper"

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the term; None for a batch of one example."""
        x = step.features.float()  # [B, D]
        size, dims = x.shape
        if size < 2 or dims < 2:
            return None
        x = x - x.mean(dim=0)
        is_code = self.form == "code"
        x = x / (x.var(dim=0, correction=1 if is_code else 0) + _EPSILON).sqrt()
        squares = (x.T @ x / size).square()  # [D, D]
        if not is_code:
            return self.beta * squares.mean()
        return self.beta * size * (squares.sum() - squares.diagonal().sum()) / (dims * (dims - 1))


@dataclass(frozen=True)
class FedDecorr(Scheme):
    """FedDecorr.

    Attributes:
        beta: β; 0 is FedAvg.
        form: "paper" or "code".
    """

    beta: float = 0.1
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("feddecorr", beta=(self.beta, 0, 1e6))
        check_form("feddecorr", self.form)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse a task without one feature vector an example."""
        run.needs_classes('scheme = "feddecorr"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Add the term."""
        return Client(terms=(Decorrelate(self.beta, self.form),) if self.beta else ())
