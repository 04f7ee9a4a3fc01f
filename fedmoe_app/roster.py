"""Roster: which node serves which client, as far as it is known, and who trains in a round."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmoe_app.exchange import exchange
from fedmoe_app.wire.records import decode_client
from fedmoe_app.wire.update import InvalidUpdateError

DESCRIBE_TIMEOUT = 60.0  # seconds that a node has to tell its client's number, once a run

_CLIENT_ERROR = re.compile(r"(client \d+): (.*)", re.DOTALL)


class Roster:
    """Client numbers by node; unlike Flower's node ids they are the same in every run."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._clients: dict[int, int] = {}
        self._asked: set[int] = set()

    def learn(self, node_id: int, content: RecordDict) -> None:
        """Note the client's number that a reply carries; a reply without one teaches nothing."""
        try:
            self._clients[node_id] = decode_client(content)
        except InvalidUpdateError:
            return  # the reply is rejected with the reason where it is decoded

    def by_client(self, by_node: Mapping[int, int]) -> dict[int, int]:
        """Return numbers by node as numbers by client, of the nodes whose client is known."""
        known = self._clients
        return {known[node]: value for node, value in by_node.items() if node in known}

    def name(self, node_id: int) -> str:
        """Return ``client 3`` where the number is known, else ``node 8123``."""
        client = self._clients.get(node_id)
        return f"node {node_id}" if client is None else f"client {client}"

    def who_and_why(self, node_id: int, reason: str) -> tuple[str, str]:
        """Split a failure into its client, which a client's own error begins with, and reason."""
        if named := _CLIENT_ERROR.fullmatch(reason):
            return named[1], named[2]
        return self.name(node_id), reason

    def draw(self, grid: Grid, nodes: list[int], server_round: int, size: int) -> list[int]:
        """Draw ``size`` of the nodes for a round, by client number and seed.

        A node that does not tell its number is drawn only when there are too few others.
        """
        if size >= len(nodes):
            return nodes
        self._describe(grid, [node for node in nodes if node not in self._asked])
        known = sorted(
            (node for node in nodes if node in self._clients),
            key=lambda node: (self._clients[node], node),
        )
        drawn = np.random.default_rng([self._seed, server_round]).permutation(len(known))[:size]
        unknown = [node for node in nodes if node not in self._clients]
        return [known[i] for i in sorted(drawn)] + unknown[: max(0, size - len(known))]

    def _describe(self, grid: Grid, nodes: list[int]) -> None:
        self._asked.update(nodes)
        messages = [Message(RecordDict(), node, "query.describe") for node in nodes]
        for reply in exchange(grid, messages, DESCRIBE_TIMEOUT):
            if reply.message is not None and reply.failure is None:
                self.learn(reply.node_id, reply.message.content)


def sample_size(num_nodes: int, fraction: float, min_clients: int) -> int:
    """Return how many of the connected nodes are asked: their share, at least ``min_clients``."""
    return min(num_nodes, max(min_clients, math.ceil(fraction * num_nodes)))
