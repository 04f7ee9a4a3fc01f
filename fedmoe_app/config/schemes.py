"""The tables of the schemes' own parameters; the classes of the schemes are built from them.

They stand here, not beside the schemes, because the command line checks a run config without torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedmoe_app.config.node import Budget, parse_budgets
from fedmoe_app.config.section import Section, Share, Text, key


class FedProxConfig(Section):
    """Parameters of FedProx."""

    proximal_mu: Annotated[float, Field(ge=0)] = key(0.01, "weight of the proximal term")


class FedMoEConfig(Section):
    """Parameters of FedMoE."""

    experts_per_client: Annotated[int, Field(ge=1)] = key(
        4, "experts a layer that each client trains: those it uses most"
    )
    usage_examples: Annotated[int, Field(ge=1)] = key(
        256, "local examples on which the usage is counted"
    )


class PFLMoEConfig(Section):
    """Parameters of PFL-MoE."""

    joint: bool = key(
        False, "true: the mixed output trains the global copy, too; false: it trains alone"
    )
    gate_learning_rate: Annotated[float, Field(gt=0)] = key(
        1e-2, "learning rate of the client's mixing gate"
    )


class HFedMoEConfig(Section):
    """Parameters of HFedMoE."""

    selection: Literal["batch", "round", "none"] = key(
        "batch",
        "when experts are chosen: in every batch (the paper), once a round, or none: all are used",
    )
    budgets: str = key(
        "2, 4, 8",
        "experts a layer (2) or share of them (0.5) of the clients whose node config has no "
        "expert-budget, taken in turn by client number",
        holds="words",
    )
    usage_examples: Annotated[int, Field(ge=1)] = key(
        256, 'selection = "round": local examples on which experts are scored'
    )
    lam: Share = key(0.5, "λ: mean against peak probability in an expert's importance")
    beta: Annotated[float, Field(ge=0)] = key(
        0.1, "β: price of an expert whose use varies from token to token"
    )
    tau: Share = key(0.05, "τ: least mean probability that counts as use")
    normalise: bool = key(True, "weights of the gates sum to 1; false: as printed in the paper")
    usage_weights: bool = key(
        True, "weigh experts by their use; false: they are averaged as in FedAvg"
    )
    importance_gates: bool = key(
        True, "weigh gates by importance; false: they are averaged as in FedAvg"
    )

    @field_validator("budgets")
    @classmethod
    def _are_budgets(cls, value: str) -> str:
        parse_budgets(value)
        return value

    @property
    def default_budgets(self) -> tuple[Budget, ...]:
        """The budgets of the clients whose node names none."""
        return parse_budgets(self.budgets)


class FCMoEConfig(Section):
    """Parameters of FC-MoE."""

    importance: bool = key(
        True, "weigh an expert's clients by importance; false: by their examples"
    )
    projection: bool = key(True, "project conflicting updates; false: they stay as they are")
    retention: Literal["paper", "filtered", "none"] = key(
        "paper", "paper (as printed), filtered (as its prose says) or none"
    )
    lam: Annotated[float, Field(ge=0)] = key(0.5, "λ: share of what is retained")


class FedAlignConfig(Section):
    """Parameters of FedAlign-MoE."""

    gates: Literal["private", "consistency", "average"] = key(
        "private", "private (the paper), consistency (averaged with ω) or average (by examples)"
    )
    uniform_weights: bool = key(False, "true: 1/N in place of ω")
    lam: Annotated[float, Field(ge=0)] = key(
        0.1, "λ: weight of the gate regulariser; 0 leaves it out"
    )
    eta: float = key(0.1, "η: overlap at which an expert's adaptive weight is 1/2")
    kl: Literal["pointwise", "bernoulli"] = key("pointwise", "pointwise (the paper) or bernoulli")
    adaptive: bool = key(True, "adaptive weights in the regulariser; false: all experts weigh 1")
    experts: Literal["semantic", "index"] = key(
        "semantic", "semantic (the paper) or index: averaged by examples"
    )
    direction: bool = key(True, "use the direction consensus D; false: without it")
    beta: float = key(1.0, "β of the threshold mean(S) − β·std(S)")
    adaptive_threshold: bool = key(True, "the threshold with β; false: the fixed one in threshold")
    threshold: Annotated[float, Field(ge=-1, le=1)] = key(
        0.5, "τ, a cosine; used with adaptive-threshold = false"
    )
    temperature: Annotated[float, Field(gt=0)] = key(
        1.0, "temperature of both sigmoids; 1 is the paper"
    )


class CombineConfig(Section):
    """Parts of schemes, put together by scheme = "combine"."""

    selection: Text = key("fedavg", "whose choice of experts")
    loss: Text = key("fedavg", "whose addition to the local loss")
    gates: Text = key("fedavg", "whose gates")
    experts: Text = key("fedavg", "whose way to combine experts")


class AverageConfig(Section):
    """A mean of the global models as the one that is evaluated and saved, with any scheme."""

    of: Literal["none", "moving", "last"] = key(
        "none",
        "none: the last global model; moving: a moving average of all of them; last: the mean of "
        "the last few",
    )
    beta: Annotated[float, Field(ge=0, lt=1)] = key(
        0.5, "moving: share of the average so far; 0 is the last model"
    )
    models: Annotated[int, Field(ge=1, le=100)] = key(2, "last: how many")


class HeadConfig(Section):
    """The classification head in closed form, with any scheme."""

    closed_form: Literal["none", "before", "every-round", "after"] = key(
        "none",
        "when the head is worked out from sums of the clients' features: before the run, after "
        "every-round as well, or after the run; none: it is trained as all else",
    )
    method: Literal["lda", "ridge"] = key(
        "lda", "lda (linear discriminant analysis) or ridge (regression on one-hot targets)"
    )
    shrinkage: Share = key(0.1, "share of the mean variance in the covariance (lda), or beside it")
    logit_rms: Annotated[float, Field(ge=0)] = key(
        2.0, "root mean square of the head's logits, less their mean; 0: as they come out"
    )
    fixed: bool = key(True, "clients do not train the head; means nothing with closed-form = after")
    leave_one_out: bool = key(
        False,
        "in training each example meets the head that the sums without it give, or the head is so "
        "sure of it that nothing is left to learn; the server tells all clients the sums",
    )
    held_back: Annotated[float, Field(ge=0, lt=1)] = key(
        0.0,
        "share of each class's examples that a client trains on and leaves out of its sums; 0: all "
        "are in the sums, and all are trained on",
    )

    @model_validator(mode="after")
    def _fits(self) -> HeadConfig:
        if not self.leave_one_out and not self.held_back:
            return self
        if self.leave_one_out and self.held_back:
            raise ValueError(
                f"leave-one-out = true with held-back = {self.held_back:g}: what is held back is "
                "in no sums; choose one of them"
            )
        own = "leave-one-out = true" if self.leave_one_out else f"held-back = {self.held_back:g}"
        if self.closed_form not in ("before", "every-round"):
            raise ValueError(
                f'{own} with closed-form = "{self.closed_form}": no head of sums is trained under; '
                'choose closed-form = "before" or "every-round"'
            )
        if self.leave_one_out and not self.fixed:
            raise ValueError(
                "leave-one-out = true with fixed = false: a head that is trained is not that of "
                "the sums; choose fixed = true, or held-back in the place of leave-one-out"
            )
        return self
