"""Calibrated merging: balanced local losses, merging by inputs, a capped server step, exact head.

Six parts against label skew, each with a switch, none with state on the nodes, all of them sums of
single clients' numbers. Client i, with p̃_i its smoothed label frequencies, O_i the classes that it
lacks, z^g the received model's logits, F_e the experts' shares over all clients:

    loss_i = CE(z + τ·log p̃_i, y)                           tau       (logitadjust)
             + λ·KL(softmax_{O_i}(z^g) ‖ softmax_{O_i}(z))    lam       (fedvls)
             + λ_g·mean over layers of E·Σ_e F_e·P_e           balance   (globalbalance)

Server, by block, with g the squares of a linear map's inputs:

    Δ   = Σ_i (g_ij + ρ·τ_g·w_i)·Δ_i,:j / Σ (...)              rho       (grammerge)
    θ  ← θ + η·Δ,  η = clip(Σ w_i·‖Δ_i‖² / 2‖Δ‖², 1, cap)      cap       (fedexp)
    after the run: the head by LDA from sums of features       head      (closed-form head)

Whatever is switched off leaves FedAvg's part in its place; with all of them off the halves are
FedAvg's, bit for bit. The references are in the modules of the schemes named on the right; to put
them together is ours, and what each is worth is a matter of leaving one out.

Decisions. η is for dense tensors and experts: gates go by examples, so that routing stays calm, and
the head has η = 1, since it sees the classes' contrasts that cancel. s is small, since λ holds the
absent classes that s would otherwise have to. A run config's own head.closed-form takes the place
of ``head``. A model without a trained head, or with frozen routers, does without that part and
says so. Not here: learning rates that differ by tensor or decay within a round
(train.lr-scheduler-type decays over rounds), a second moment shared by Adam. The mean of the last
two models as the reported one is average.of = "last", with any scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.closedhead import EstimateHead, FeatureSums
from fedmoe_app.schemes.fedexp import Extrapolated
from fedmoe_app.schemes.fedvls import VacantClasses
from fedmoe_app.schemes.globalbalance import GlobalBalance, TellShares
from fedmoe_app.schemes.grammerge import GramShares, GramWeighted
from fedmoe_app.schemes.logitadjust import PriorAdjusted
from fedmoe_app.schemes.parts import Client, Mean, Server, Summed, Term
from fedmoe_app.schemes.ranges import in_range

BUILT_IN = {"calmerge": "CalMerge"}


@dataclass(frozen=True)
class CalMerge(Scheme):
    """Calibrated merging.

    Attributes:
        tau: τ, strength of the prior in the loss; 0 is off.
        smoothing: s, examples added to every class in p̃.
        lam: λ, weight of the distillation on absent classes; 0 is off.
        balance: λ_g, weight of the balance over all clients; 0 is off.
        rho: ρ, how far merging by inputs is drawn to FedAvg; 0 is off.
        cap: the largest η; 1 is off.
        head: whether the head is worked out in closed form after the run.
        shrinkage: γ of the head's covariance.
    """

    tau: float = 1.0
    smoothing: float = 1e-9
    lam: float = 0.1
    balance: float = 0.01
    rho: float = 1.0
    cap: float = 2.0
    head: bool = True
    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        weights = {"tau": self.tau, "smoothing": self.smoothing, "lam": self.lam}
        weights |= {"balance": self.balance, "rho": self.rho}
        in_range("calmerge", **{name: (value, 0, 1e9) for name, value in weights.items()})
        in_range("calmerge", cap=(self.cap, 1, None), shrinkage=(self.shrinkage, 0, 1))
        in_range("calmerge", head=(int(self.head), 0, 1))

    @classmethod
    def from_config(cls, config: RunConfig) -> Scheme:
        """Take ``scheme-args``; a closed form of the run config's own takes the head's place."""
        found = cls(**config.scheme_kwargs)
        return found if config.head.closed_form == "none" else replace(found, head=False)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse labels that are no classes; tell what this model does without."""
        if self.tau or self.lam or self.head:
            run.needs_classes('scheme = "calmerge"')
        lacking = {
            "head: the model has no classification head that is trained": (
                self.head and not run.model.head
            ),
            "balance: the routers are frozen": self.balance and not run.model.gates_trained,
        }
        return [
            f"calmerge: {part}; this part is left out" for part, is_so in lacking.items() if is_so
        ]

    def client(self, model: ModelShape) -> Client:
        """Put the loss together."""
        distil: tuple[Term, ...] = (VacantClasses(self.lam),) if self.lam else ()
        balance = (GlobalBalance(self.balance),) if self._balances(model) else ()
        loss = PriorAdjusted(self.tau, self.smoothing) if self.tau else None
        return Client(loss=loss, terms=distil + balance)

    def server(self, model: ModelShape) -> Server:
        """Put the rules and the head together."""
        rule: Summed = GramWeighted(self.rho) if self.rho else Mean()
        if self.cap > 1:
            rule = Extrapolated(
                cap=self.cap, mean=rule, spared=f"{model.head}." if model.head else ""
            )
        estimate = EstimateHead(FeatureSums(model.head), shrinkage=self.shrinkage)
        return Server(
            dense=rule,
            experts=rule,
            steps=(TellShares(),) if self._balances(model) else (),
            after=(estimate,) if self.head and model.head else (),
            probes=(GramShares(self.rho),) if self.rho else (),
        )

    def _balances(self, model: ModelShape) -> bool:
        return bool(self.balance) and model.gates_trained
