"""Roster: which node serves which client, as far as it is known, and who trains in a round."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmoe_app.exchange import exchange
from fedmoe_app.rests import Rests
from fedmoe_app.wire.records import decode_client
from fedmoe_app.wire.update import InvalidUpdateError

DESCRIBE_TIMEOUT = 60.0  # seconds that a node has to tell its client's number, once a run

_CLIENT_ERROR = re.compile(r"(client \d+): (.*)", re.DOTALL)


class Roster:
    """Client numbers by node; unlike Flower's node ids they are the same in every run.


    Attributes:
        clients: node id -> client's number, as far as known.
        sizes: client -> training examples in its last usable reply.
        rests: which clients are left out because they failed lately.
    """

    def __init__(self, seed: int, sampling: str = "uniform", max_rest: int = 0) -> None:
        self._seed = seed
        self._sampling = sampling
        self.clients: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.rests = Rests(max_rest)
        self._asked: set[int] = set()

    def learn(self, node_id: int, content: RecordDict) -> None:
        """Note the client's number that a reply carries; a reply without one teaches nothing."""
        try:
            client = decode_client(content)
        except InvalidUpdateError:
            return  # the reply is rejected with the reason where it is decoded
        self._serves(node_id, client)

    def _serves(self, node_id: int, client: int) -> None:
        self.clients[node_id] = client
        self.rests.rename(f"node {node_id}", f"client {client}")

    def forget(self, node_id: int) -> None:
        """Forget which client a node said it serves."""
        self.clients.pop(node_id, None)

    def holders(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return client -> node for these nodes, without clients that two of them claim."""
        known = [(c, node) for node in nodes if (c := self.client(node)) is not None]
        counts = Counter(client for client, _ in known)
        return {client: node for client, node in known if counts[client] == 1}

    def client(self, node_id: int) -> int | None:
        """Return a node's client number, None if it is not known yet."""
        return self.clients.get(node_id)

    def by_client(self, values: Mapping[int, int]) -> dict[int, int]:
        """Return values by node as values by client, without those of nodes of no known client."""
        return {c: value for n, value in values.items() if (c := self.client(n)) is not None}

    def name(self, node_id: int) -> str:
        """Return ``client 3`` where the number is known, else ``node 8123``."""
        client = self.clients.get(node_id)
        return f"node {node_id}" if client is None else f"client {client}"

    def who_and_why(self, node_id: int, reason: str) -> tuple[str, str]:
        """Split a failure into its client, which a client's own error begins with, and reason."""
        if named := _CLIENT_ERROR.fullmatch(reason):
            self._serves(node_id, int(named[1].removeprefix("client ")))
            return named[1], named[2]
        return self.name(node_id), reason

    def awake(self, grid: Grid, nodes: list[int], server_round: int, at_least: int) -> list[int]:
        """Leave out the nodes that rest after failures, but never so that too few are left."""
        resting = self.rests.order(server_round)  # those whose rest ends first, first
        if not resting:
            return nodes
        # A client that rests may be back as another node, as after a resume.
        new = [n for n in nodes if n not in self.clients and n not in self._asked]
        self._describe(grid, new)
        by_name = {self.name(node): node for node in nodes}
        left_out = [by_name[name] for name in resting if name in by_name]
        awake = [node for node in nodes if node not in left_out]
        return sorted(awake + left_out[: max(0, at_least - len(awake))])

    def draw(self, grid: Grid, nodes: list[int], server_round: int, size: int) -> list[int]:
        """Draw ``size`` of the nodes for a round, by client number and seed.

        With ``sampling = "examples"`` a client's chance goes by its examples, as its last reply
        told; one that never replied counts as much as the mean of the others. A node that does not
        tell its number is drawn only when there are too few others.
        """
        if size >= len(nodes):
            return nodes
        self._describe(grid, [node for node in nodes if node not in self._asked])
        known = sorted(
            (node for node in nodes if node in self.clients),
            key=lambda node: (self.clients[node], node),
        )
        drawn = self._sample([self.clients[node] for node in known], server_round, size)
        unknown = [node for node in nodes if node not in self.clients]
        return [known[i] for i in sorted(drawn)] + unknown[: max(0, size - len(known))]

    def _sample(self, clients: list[int], server_round: int, size: int) -> list[int]:
        """Draw positions of ``clients``, each at most once."""
        generator = np.random.default_rng([self._seed, server_round])
        if self._sampling == "uniform" or size >= len(clients):
            return generator.permutation(len(clients))[:size].tolist()
        told = [self.sizes[client] for client in clients if client in self.sizes]
        mean = sum(told) / len(told) if told else 1.0
        weights = np.array([self.sizes.get(client, mean) for client in clients])
        chances = weights / weights.sum()
        return generator.choice(len(clients), size, replace=False, p=chances).tolist()

    def _describe(self, grid: Grid, nodes: list[int]) -> None:
        self._asked.update(nodes)
        messages = [Message(RecordDict(), node, "query.describe") for node in nodes]
        for reply in exchange(grid, messages, DESCRIBE_TIMEOUT):
            if reply.message is not None and reply.failure is None:
                self.learn(reply.node_id, reply.message.content)


def sample_size(num_nodes: int, fraction: float, min_clients: int, fixed: int = 0) -> int:
    """Return how many of the connected nodes are asked, at least ``min_clients``.

    That is ``fixed`` of them, or their share ``fraction`` if that is 0.
    """
    return min(num_nodes, max(min_clients, fixed or math.ceil(fraction * num_nodes)))
