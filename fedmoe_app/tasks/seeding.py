"""Seeds and threads of one client, so that a run is the same in any process and order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def client_seed(seed: int, server_round: int, client: int) -> int:
    """Derive a client's seed for a round; the same on every node and in every order."""
    return int(np.random.SeedSequence([seed, server_round, client]).generate_state(1)[0])


@contextmanager
def one_client(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and limit its threads; restore both, since clients share processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)
