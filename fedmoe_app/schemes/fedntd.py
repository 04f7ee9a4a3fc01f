"""FedNTD: distillation from the received model over all classes but the right one.

Lee et al., "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning",
NeurIPS 2022, arXiv:2106.03097, eq. 6 and 7; the softmaxes run over the classes c ≠ y:

    loss_i = CE(z, y) + β·T²·KL(softmax_{c≠y}(z^g / T) ‖ softmax_{c≠y}(z / T))

β = 0 is FedAvg bit for bit. Decision: T² as in the authors' code (Lee-Gihun/FedNTD), where the
defaults are β = 1 and T = 3; at T = 1 both forms are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.distil import masked_kl
from fedmoe_app.schemes.parts import Client, TeacherTerm
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep

BUILT_IN = {"fedntd": "FedNTD"}
TRAITS = ("label-skew",)


@dataclass(frozen=True)
class NotTrue(TeacherTerm):
    """β·T²·KL over the classes c ≠ y."""

    beta: float = 1.0
    temperature: float = 3.0

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        others = F.one_hot(step.labels, step.logits.shape[1]) == 0  # [I, C]
        kl = masked_kl(step.teacher, step.logits, others, others, self.temperature)
        return self.beta * kl


@dataclass(frozen=True)
class FedNTD(Scheme):
    """FedNTD.

    Attributes:
        beta: β; 0 is FedAvg.
        temperature: T.
    """

    beta: float = 1.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedntd", beta=(self.beta, 0, 1e6), temperature=(self.temperature, 1e-3, 1e3))

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes."""
        run.needs_classes('scheme = "fedntd"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Distil."""
        return Client(terms=(NotTrue(self.beta, self.temperature),) if self.beta else ())
