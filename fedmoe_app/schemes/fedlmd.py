"""FedLMD: distillation from the received model over the classes of which a client has few.

Lu et al., "Federated Learning with Label-Masking Distillation", ACM MM 2023, arXiv:2409.13136;
with M_i the majority classes of client i, those of which it has more examples than the mean over
all C classes:

    loss_i = CE(z, y) + β·T²·KL(softmax_{c ∉ M_i, c≠y}(z^g / T) ‖ softmax_{c≠y}(z / T))

β = 0 is FedAvg bit for bit. This is the form of the authors' code (wnma3mz/FedLMD; β = 1, T = 1),
which also fixes what a majority is. Decision: an example whose teacher has no class left, because
all others are majority classes, adds nothing; the code would divide numerical noise there.
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

BUILT_IN = {"fedlmd": "FedLMD"}
TRAITS = ("label-skew",)


@dataclass(frozen=True)
class LabelMasking(TeacherTerm):
    """β·T²·KL with the majority classes masked in the teacher."""

    beta: float = 1.0
    temperature: float = 1.0

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        others = F.one_hot(step.labels, step.logits.shape[1]) == 0  # [I, C]
        minority = step.label_counts <= step.label_counts.mean()  # [C]
        kl = masked_kl(step.teacher, step.logits, others & minority, others, self.temperature)
        return self.beta * kl


@dataclass(frozen=True)
class FedLMD(Scheme):
    """FedLMD.

    Attributes:
        beta: β; 0 is FedAvg.
        temperature: T.
    """

    beta: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedlmd", beta=(self.beta, 0, 1e6), temperature=(self.temperature, 1e-3, 1e3))

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes."""
        run.needs_classes('scheme = "fedlmd"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Distil."""
        return Client(terms=(LabelMasking(self.beta, self.temperature),) if self.beta else ())
