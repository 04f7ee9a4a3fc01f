"""How the global model is scored to choose the best round, and when that ends a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.results.best import Best, BestRound
from fedmoe_app.results.events import BestKept, tell
from fedmoe_app.schemes.base import Plan

# Scores the global state of a round on rows of the server's.
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass
class Validation:
    """Scores rounds on rows that are neither training nor test rows.

    Attributes:
        keeper: the best round so far; None where scores are only noted and the last is kept.
        evaluate_fn: scores a global state on the server's validation rows; None lets the clients
            score it on their own hold-outs, weighted by their items.
    """

    keeper: BestRound | None
    evaluate_fn: EvaluateFn | None = None

    @property
    def best(self) -> Best | None:
        """The best round so far."""
        return self.keeper.best if self.keeper is not None else None

    def note(self, server_round: int, score: Mapping[str, Any] | None) -> None:
        """Take the score of a round."""
        if self.keeper is not None:
            self.keeper.note(server_round, score)

    def line(self, server_round: int) -> dict[str, Any]:
        """Return what the round's line says of the best one."""
        return self.keeper.line(server_round) if self.keeper is not None else {}

    def is_over(self, server_round: int) -> bool:
        """Tell whether the run ends here for want of a better round, and say so."""
        if self.keeper is None or not self.keeper.is_over(server_round):
            return False
        assert self.keeper.best is not None
        best = self.keeper.best
        tell(BestKept(server_round, best.round, self.keeper.metric, best.value))
        return True

    def restore(self, best: Best | None) -> None:
        """Go on with the best round of a checkpoint."""
        if self.keeper is not None:
            self.keeper.best = best


def check_best(config: RunConfig, plan: Plan) -> None:
    """Refuse to keep the best round of a scheme that moves the model after the last one.

    Raises:
        ConfigError: naming the keys.
    """
    if config.keep_best and plan.server.after:
        raise ConfigError(
            f'keep-best = "{config.keep_best}": {config.scheme} moves the model once more after '
            'the last round, which is then the one to keep; choose keep-best = "", or leave that '
            'step out (such as head.closed-form = "after")'
        )


def keeper_of(config: RunConfig) -> BestRound | None:
    """Return what chooses the round that a run keeps; None where that is the last one."""
    return BestRound(config.keep_best, config.patience) if config.keep_best else None
