"""Any scheme with its classification head in closed form: when, and under what it is trained.

The head itself is in :mod:`fedmoe_app.schemes.closedhead`; how an example does without having been
learnt by it, in :mod:`fedmoe_app.schemes.leaveoneout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.closedhead import EstimateHead, FeatureSums, FixedHead
from fedmoe_app.schemes.leaveoneout import HeldBack, LeaveOneOut, TellHead
from fedmoe_app.schemes.parts import Client, Server


@dataclass(frozen=True)
class ClosedFormHead(Scheme):
    """Any scheme, with its classification head in closed form.

    Attributes:
        scheme: whose everything else is.
        when: "before" the run, "every-round" as well, or "after" the run.
        method: "lda" or "ridge".
        shrinkage: γ.
        logit_rms: r; 0 leaves the head's scale as it comes out.
        fixed: clients do not train the head; means nothing with "after".
        leave_one_out: in training each example meets the head of the sums without it.
        held_back: share of each class's examples that is trained on and left out of the sums; 0
            trains on all, and sums all.
    """

    scheme: Scheme
    when: str = "before"
    method: str = "lda"
    shrinkage: float = 0.1
    logit_rms: float = 2.0
    fixed: bool = True
    leave_one_out: bool = False
    held_back: float = 0.0

    def check(self, run: Run) -> Sequence[str]:
        """Refuse a run without such a head, or with sums of different models."""
        key = f'head.closed-form = "{self.when}"'
        run.needs_classes(key)
        if not run.model.head:
            raise ConfigError(
                f"{key}: the model has no classification head that is trained; choose "
                'model.head = "sequence", a family that has such a head, and model.train-head = '
                "true"
            )
        if run.chosen:
            raise ConfigError(
                f"{key}: nodes that load other experts compute other features, whose sums mean "
                'nothing; set model.experts-in-memory = "all"'
            )
        if run.buffered and self.when == "every-round":
            raise ConfigError(
                f"{key}: in buffered rounds some nodes still train, so that their sums would be "
                'missing; choose "before" or "after", or rounds = "sync"'
            )
        return self.scheme.check(run)

    def client(self, model: ModelShape) -> Client:
        """Leave the head alone, if it is fixed; let no example meet a head that has learnt it."""
        half = self._unlearnt(self.scheme.client(model), model)
        if half.personal is not None:
            raise ValueError(
                "head.closed-form: a personal copy of the model has a head of its own; choose "
                'head.closed-form = "none"'
            )
        if not self.fixed or self.when == "after":
            return half
        if half.freeze is not None:
            raise ValueError(
                f"head.fixed = true: {type(half.freeze).__name__} freezes tensors already; choose "
                "head.fixed = false"
            )
        return replace(half, freeze=FixedHead(model.head))

    def _unlearnt(self, half: Client, model: ModelShape) -> Client:
        taken = {"logits": half.logits is not None, "split": half.split is not None}
        if (self.leave_one_out and taken["logits"]) or (self.held_back and taken["split"]):
            raise ValueError(
                "head.leave-one-out, head.held-back: the scheme has such a part of its own; choose "
                "false and 0"
            )
        if self.leave_one_out:
            return replace(half, logits=LeaveOneOut(model.head, self.method, self.shrinkage))
        return replace(half, split=HeldBack(self.held_back)) if self.held_back else half

    def server(self, model: ModelShape) -> Server:
        """Estimate the head when it is due."""
        half = self.scheme.server(model)
        sums = FeatureSums(model.head)
        kind = TellHead if self.leave_one_out else EstimateHead
        step = kind(sums, self.method, self.shrinkage, self.logit_rms)
        if self.when == "after":
            return replace(half, after=(*half.after, step))
        refresh = (*half.refresh, step) if self.when == "every-round" else half.refresh
        return replace(half, before=(*half.before, step), refresh=refresh)
