"""Logit adjustment: each client's loss is corrected by its own label frequencies.

With p̃_i(c) = (n_i(c) + s) / (n_i + s·C), n_i(c) client i's training examples of class c:

    loss_i(x, y) = CE(z(x) + τ·log p̃_i, y)               prediction uses z alone

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv:2007.07314, eq. 10; τ = 1
is the balanced softmax of Ren et al., NeurIPS 2020, arXiv:2007.10740, eq. 4. Its minimiser, for
τ = 1, is log p(x | c) up to a constant: the same function for every client, whatever its labels.

FedLC: Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration", ICML
2022, arXiv:2209.00189, eq. 6:

    loss_i(x, y) = −log( e^{z_y − τ·n_i(y)^(−1/4)} / Σ_{c ≠ y} e^{z_c − τ·n_i(c)^(−1/4)} )   printed
    loss_i(x, y) = CE(z(x) − τ·n_i^(−1/4), y)                  as public re-implementations have it

Decisions. Offsets are taken relative to the largest, which a softmax does not see: equal label
counts give exactly 0, and so FedAvg bit for bit. s > 0 keeps a client of one class from a loss of
0. In FedLC a class that the client lacks counts as 10⁻⁸ examples (an offset of −100·τ): it leaves
the softmax, as 0^(−1/4) = ∞ does, without NaN; the code form is the default, since the printed loss
is unbounded below. Next-token prediction takes the frequencies of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, TaskLoss
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep

BUILT_IN = {"logitadjust": "LogitAdjust", "fedlc": "FedLC"}
TRAITS = ("label-skew",)

_ABSENT = 1e-8  # examples that a class counts for in FedLC if the client has none


def prior_offsets(label_counts: Tensor, tau: float, smoothing: float) -> Tensor:
    """Return τ·log p̃, less its largest value, ``[C]``.

    Args:
        label_counts: n_i(c), ``[C]``.
        tau: τ.
        smoothing: s ≥ 0; at 0 the offset of an absent class is −∞.
    """
    smoothed = label_counts + smoothing
    return tau * (smoothed / smoothed.max()).log()


@dataclass(frozen=True)
class PriorAdjusted(TaskLoss):
    """CE(z + τ·log p̃, y)."""

    tau: float = 1.0
    smoothing: float = 0.1

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        offsets = prior_offsets(step.label_counts, self.tau, self.smoothing)
        return F.cross_entropy(step.logits + offsets, step.labels)


@dataclass(frozen=True)
class Calibrated(TaskLoss):
    """FedLC's loss; ``form`` is "code" or "paper"."""

    tau: float = 0.5
    form: str = "code"

    def loss(self, step: LocalStep) -> Tensor:
        """Return the mean over the items."""
        offsets = -self.tau * step.label_counts.clamp_min(_ABSENT).pow(-0.25)
        logits = step.logits + (offsets - offsets.max())  # [I, C]
        if self.form == "code":
            return F.cross_entropy(logits, step.labels)
        labels = step.labels[:, None]
        others = logits.scatter(1, labels, -torch.inf).logsumexp(dim=1)  # [I]
        return (others - logits.gather(1, labels)[:, 0]).mean()


@dataclass(frozen=True)
class LogitAdjust(Scheme):
    """Balanced softmax, or logit adjustment of another strength.

    Attributes:
        tau: τ; 0 is FedAvg.
        smoothing: s, examples added to every class.
    """

    tau: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("logitadjust", tau=(self.tau, 0, 1e6), smoothing=(self.smoothing, 0, 1e6))

    def check(self, run: Run) -> Sequence[str]:
        """Refuse options, which are no classes; tokens are."""
        if run.kind.rows == "options":
            run.needs_classes('scheme = "logitadjust"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Adjust the loss."""
        return Client(loss=PriorAdjusted(self.tau, self.smoothing) if self.tau else None)


@dataclass(frozen=True)
class FedLC(Scheme):
    """FedLC.

    Attributes:
        tau: τ; 0 in the code form is FedAvg.
        form: "code" or "paper".
    """

    tau: float = 0.5
    form: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedlc", tau=(self.tau, 0, 1e6))
        check_form("fedlc", self.form)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes."""
        run.needs_classes('scheme = "fedlc"')
        return ()

    def client(self, model: ModelShape) -> Client:
        """Calibrate the loss."""
        is_off = self.tau == 0 and self.form == "code"
        return Client(loss=None if is_off else Calibrated(self.tau, self.form))


def check_form(scheme: str, form: str) -> None:
    """Refuse a form of a loss that is neither the paper's nor that of its code.

    Raises:
        ConfigError: naming both.
    """
    if form not in ("paper", "code"):
        raise ConfigError(f'{scheme}: form = "{form}": choose "paper" or "code"')
