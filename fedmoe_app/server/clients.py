"""Client registry: which node serves which client, as far as it is known, and who trains.

Cooldown: a client that keeps failing is left out for some rounds, longer each time.

A first failure costs nothing: it may be a lost message. After f > 1 failures in a row a client
is left out for 2^(f-2) rounds: 1, 2, 4, ..., at most ``longest``. One usable reply ends the row.
The rule knows rounds and names only, so that a run is repeated by its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmoe_app.results.events import logger
from fedmoe_app.server.bindings import Bindings
from fedmoe_app.server.client_list import ClientList
from fedmoe_app.server.transport import exchange
from fedmoe_app.wire.bounds import MAX_EXAMPLES, TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.numbers import decode_number
from fedmoe_app.wire.question import Question


@dataclass
class _Record:
    failures: int  # in a row
    until: int  # the last round of the cooldown


class Cooldown:
    """Who is left out, by name (``client 3``, or ``node 812`` where the number is not known).

    Args:
        longest: rounds that a cooldown lasts at most; 0 leaves nobody out.
    """

    def __init__(self, longest: int = 0) -> None:
        self._longest = longest
        self._records: dict[str, _Record] = {}

    def note(self, server_round: int, failed: Iterable[str], good: Iterable[str]) -> None:
        """Take what a round brought: the names of those that failed, and of those that did not."""
        for name in failed:
            failures = self._records[name].failures + 1 if name in self._records else 1
            rounds = min(2 ** (failures - 2), self._longest) if failures > 1 else 0
            self._records[name] = _Record(failures, server_round + rounds)
        for name in good:
            self._records.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Note that a name, of a node, is that of a client, as has just become known."""
        if old in self._records:
            self._records[new] = self._records.pop(old)

    def order(self, server_round: int) -> list[str]:
        """Return the names that are left out in a round, those that come back first, first."""
        resting = [name for name, record in self._records.items() if record.until >= server_round]
        return sorted(resting, key=lambda name: (self._records[name].until, name))

    def dump(self) -> dict[str, list[int]]:
        """Return what a checkpoint keeps, for :meth:`load`."""
        return {name: [record.failures, record.until] for name, record in self._records.items()}

    def load(self, dumped: dict[str, list[int]]) -> None:
        """Go on from what :meth:`dump` returned."""
        self._records = {name: _Record(*numbers) for name, numbers in dumped.items()}


_UNKNOWN_TESTS = 10  # times the most test items that are known
DESCRIBE_TIMEOUT = 60.0  # seconds that a node has to tell its client's number, once a run


class ClientRegistry:
    """Client numbers by node; unlike Flower's node ids they are the same in every run.

    Args:
        seed: fixes which clients are drawn in a round.
        sampling: ``uniform``, or ``examples``: a client's chance goes by its examples.
        longest_cooldown: rounds that a client is left out after failures, at most.
        client_list: who may speak for which client; None leaves it to who comes first.

    Attributes:
        sizes: client -> training examples in its last usable reply.
        tests: client -> items that its own test examples were scored by in that reply.
        cooldown: which clients are left out because they failed lately.
        question: what the messages of this round ask about.
        refused: node -> why it may not speak for the client that it named, not told yet.
        unlisted: nodes that the client list lacks.
    """

    def __init__(
        self,
        seed: int = 0,
        sampling: str = "uniform",
        longest_cooldown: int = 0,
        client_list: ClientList | None = None,
    ) -> None:
        self._seed = seed
        self._sampling = sampling
        self._list = client_list
        self._bindings = Bindings()
        self.sizes: dict[int, int] = {}
        self.tests: dict[int, int] = {}
        self.cooldown = Cooldown(longest_cooldown)
        self.question = Question()
        self.refused: dict[int, str] = {}
        self.unlisted: set[int] = set()
        self._told: set[int] = set()  # nodes of which was said that they are not listed
        self._asked: set[int] = set()
        self._wanted: dict[int, int] = {}  # node -> number that it was refused

    @property
    def clients(self) -> dict[int, int]:
        """Node id -> client's number, in the order in which they were bound."""
        return self._bindings.clients

    @clients.setter
    def clients(self, clients: Mapping[int, int]) -> None:
        self._bindings.load(clients)

    # -- who may speak for whom ----------------------------------------------------------------

    def connected(self, grid: Grid) -> list[int]:
        """Return the connected nodes that may take part, sorted by id, and note who is there."""
        if self._list is None:
            nodes = sorted(grid.get_node_ids())
        else:
            infos = list(grid.get_nodes())
            listed = self._list.clients(infos)
            self._bindings.load(listed, is_list=True)
            self.unlisted = {int(info.node_id) for info in infos} - listed.keys()
            nodes = sorted(listed)
            self._tell_of_unlisted()
        self._bindings.see(nodes)
        return nodes

    def _tell_of_unlisted(self) -> None:
        for node in sorted(self.unlisted - self._told):
            self._told.add(node)
            logger.info("node %d is not in the client list; it is not asked", node)

    def claim(self, node_id: int, client: int, worked: bool = True) -> None:
        """Take a good reply's word for its client's number, until :meth:`settle`.

        Args:
            node_id: that it came from.
            client: the number.
            worked: whether the reply is more than the number.

        Raises:
            InvalidUpdateError: of kind ``client``, if the node may not speak for that client.
        """
        if reason := self._bindings.claim(node_id, client, worked):
            self._wanted[node_id] = client
            raise InvalidUpdateError(reason, "client")

    def settle(self) -> dict[int, str]:
        """Bind the nodes to the clients that they claim; return why not, by node."""
        bound, refused = self._bindings.settle()
        for node, client in bound.items():
            self._wanted.pop(node, None)
            self.cooldown.rename(f"node {node}", f"client {client}")
        return refused

    def client(self, node_id: int) -> int | None:
        """Return the client that a node speaks for, None if it is not known."""
        return self._bindings.client(node_id)

    def holders(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return client -> node for those of these nodes whose client is known."""
        return {c: node for node in nodes if (c := self.client(node)) is not None}

    def most_tests(self, client: int, bounds: TaskBounds) -> int:
        """Return how many test items a client can have been scored by.

        That is what its last training reply said. For one that has not trained yet, it is what the
        server's own data allow, or ten times the most that any other said: it must not decide
        alone how good the model looks.
        """
        if client in self.tests:
            return self.tests[client]
        if not self.tests:
            return bounds.test_items(MAX_EXAMPLES)
        own = bounds.test_items(bounds.num_rows) if bounds.num_rows else 0
        return max(own, _UNKNOWN_TESTS * max(1, *self.tests.values()))

    def by_client(self, values: Mapping[int, int]) -> dict[int, int]:
        """Return values by node as values by client, without those of nodes of no known client."""
        return {c: value for n, value in values.items() if (c := self.client(n)) is not None}

    def name(self, node_id: int) -> str:
        """Return ``client 3`` where the number is known, else ``node 8123``."""
        client = self.client(node_id)
        return f"node {node_id}" if client is None else f"client {client}"

    def ask(self, grid: Grid, nodes: Iterable[int]) -> None:
        """Ask nodes of no known client for their number, which is a claim like any.

        Each is asked once, and again when the number that it was refused has become free. The
        claims wait for :meth:`settle`.
        """
        new = [n for n in nodes if self.client(n) is None and self._may_tell(n)]
        if not new:
            return
        self._asked.update(new)
        content = RecordDict({"task": ConfigRecord(self.question.task())})
        messages = [Message(content, node, "query.describe") for node in new]
        for reply in exchange(grid, messages, DESCRIBE_TIMEOUT):
            if reply.message is None or reply.failure is not None:
                continue
            try:
                number = decode_number(reply.message.content, self.question)
                self.claim(reply.node_id, number, worked=False)
            except InvalidUpdateError as error:
                self.refused[reply.node_id] = f"number rejected: {error}"

    def _may_tell(self, node: int) -> bool:
        if node in self._wanted:
            return self._bindings.is_free(self._wanted[node])
        return node not in self._asked

    def _describe(self, grid: Grid, nodes: Iterable[int]) -> None:
        self.ask(grid, nodes)
        reasons = self.settle()
        self.refused |= {node: f"number rejected: {why}" for node, why in reasons.items()}

    # -- who trains ----------------------------------------------------------------------------

    def awake(self, grid: Grid, nodes: list[int], server_round: int, at_least: int) -> list[int]:
        """Leave out the nodes that failed lately, but never so that too few are left."""
        resting = self.cooldown.order(server_round)  # those that come back first, first
        if not resting:
            return nodes
        # A client that cools down may be back as another node, as after a resume.
        self._describe(grid, nodes)
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
        self._describe(grid, nodes)
        holders = sorted(self.holders(nodes).items())
        known = [node for _, node in holders]
        drawn = self._sample([client for client, _ in holders], server_round, size)
        unknown = [node for node in nodes if self.client(node) is None]
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


def sample_size(num_nodes: int, fraction: float, min_clients: int, fixed: int = 0) -> int:
    """Return how many of the connected nodes are asked, at least ``min_clients``.

    That is ``fixed`` of them, or their share ``fraction`` if that is 0.
    """
    return min(num_nodes, max(min_clients, fixed or math.ceil(fraction * num_nodes)))
