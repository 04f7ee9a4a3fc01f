"""Rounds under client-level differential privacy: who is drawn, and what is kept of a reply.

The server is trusted with the clients' clipped changes; whoever gets the model, the result folder,
its page or its log is not. So nothing of a single client is told (:class:`server.round.Round` with
``private``), and nobody's chance to be drawn depends on data: no rests after failures, no more
clients where few answered. A draw of nobody is a round, too: noise alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe_app.privacy.client_level import ClientLevel
from fedmoe_app.privacy.clipping import bounded
from fedmoe_app.privacy.ledger import Ledger
from fedmoe_app.privacy.randomness import OfSystem, Randomness
from fedmoe_app.results.events import logger
from fedmoe_app.wire.update import ClientUpdate


class PrivateRounds:
    """The mechanism at work in a run.

    Args:
        level: the mechanism.
        ledger: what is spent; None counts in memory.
        randomness: where draws and noise come from.
    """

    def __init__(
        self,
        level: ClientLevel,
        ledger: Ledger | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        self.level = level
        self.ledger = ledger or Ledger(level)
        self.randomness = randomness or OfSystem()

    @property
    def expected(self) -> int:
        """Clients of a round in the mean, as is told in place of their number."""
        return round(self.level.expected)

    def draw(self, nodes: Sequence[int]) -> list[int]:
        """Draw each node by itself with chance q."""
        chances = self.randomness.uniform(len(nodes))
        return [
            node for node, chance in zip(nodes, chances, strict=True) if chance <= self.level.rate
        ]

    def bounded(self, update: ClientUpdate) -> ClientUpdate:
        """Return a reply with its changes clipped: a client's word for it is not enough."""
        return bounded(update, self.level.clip)

    def say_before(self, num_values: int, num_rounds: int) -> None:
        """Log what the noise will be, before anything is trained.

        Args:
            num_values: of the model that are trained.
            num_rounds: of the run.
        """
        level = self.level
        ratio, needed = level.ratio(num_values), level.clients_for(num_values)
        spent = Ledger(level, at_least=num_rounds)
        logger.info(
            "privacy: noise multiplier %.4g, clip %g, %d rounds spend epsilon %.3g at delta %g",
            *(level.noise, level.clip, num_rounds, spent.epsilon, level.delta),
        )
        logger.info(
            "privacy: the noise of a round is %.3g times the longest change that a mean can have "
            "(%d values, %g of %d clients a round); a ratio of 1 takes %d clients%s",
            *(ratio, num_values, level.expected, level.clients, needed),
            "; expect no useful model" if ratio > 3 else "",
        )
