"""What a client's counts can be at most, as the run's config says: no honest client is beyond.

Notation: n training examples of a client, t test examples, f the share that it holds out, K experts
that a token uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedmoe_app.config.schema import TrainConfig

# What is refused of any task. A client's weight is its number of examples: one that claims more
# would be alone in the mean.
MAX_EXAMPLES = 10**8
MAX_TOKENS = 10**12  # of a layer in a round: FC-MoE weighs a client by its tokens
MAX_STEPS = 10**8  # optimiser steps of a round
MAX_ITEMS = 10**12  # scored examples or tokens


@dataclass(frozen=True)
class TaskBounds:
    """Bounds of a run. The defaults know nothing of its task and refuse what no task has.

    Attributes:
        train: the local training; None if it is not known.
        max_length: tokens that an example has in a layer at most; 0 if not known.
        top_k: K, the largest of all layers; 0 if not known.
        passes: how often a layer sees a token in one forward pass; more than 1 in a looped model.
        test_fraction: f; None if not known.
        items: that a test example is scored by, at most: 1, or its response tokens.
        num_rows: examples of the data that is split over the clients; 0 if every client brings
            its own, or it is not known.
    """

    train: TrainConfig | None = None
    max_length: int = 0
    top_k: int = 0
    test_fraction: float | None = None
    items: int = 1
    num_rows: int = 0
    passes: int = 1

    def examples(self, num_partitions: int) -> int:
        """Return how many training examples a client can have.

        Args:
            num_partitions: into which it says that the data is split; 0 if it brings its own.
        """
        return self.num_rows if self.num_rows and num_partitions else MAX_EXAMPLES

    def partitions(self) -> int:
        """Return into how many parts the data can be split."""
        return self.num_rows or MAX_EXAMPLES

    def steps(self, num_examples: int) -> int:
        """Return the optimiser steps of a round with n examples."""
        return self.train.num_steps(num_examples) if self.train is not None else MAX_STEPS

    def tokens(self, num_examples: int) -> int:
        """Return the tokens that a layer can see in a round with n examples."""
        if self.train is None or not self.max_length:
            return MAX_TOKENS
        seen = self.train.examples_seen(num_examples) * self.max_length
        return min(MAX_TOKENS, seen * self.passes)

    def test_items(self, num_examples: int) -> int:
        """Return how many items a client with n training examples can score.

        It held t out of n + t: t = max(1, round(f·(n + t))), see
        :func:`fedmoe_app.data.partitions.split_local`.
        """
        share = self.test_fraction
        if share is None:
            return MAX_ITEMS
        if share == 0:
            return 0
        return self.items * max(1, math.floor((share * num_examples + 0.5) / (1 - share) + 1e-9))
