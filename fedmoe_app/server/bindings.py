"""Bindings: a client's number belongs to the node that first used it in a run.

What a node says of itself is a claim. A node is known by Flower's node id alone: where nodes are
authenticated, the SuperLink ties it to a registered key. The rules:

* The first node whose claim is good is bound to the number, for the run and its resumes.
* A number that a connected node is bound to is given to nobody else, whether that node answers in
  a round, rests or is silent. A bound node that says another number is refused.
* Claims of one round count together: the order of arrival gives nobody a number. A claim that
  comes with a good training reply counts before one that was only asked for. Where two new nodes
  have equal claims to a number, neither gets it while both are connected.
* A node that is gone does not block its number: a SuperNode without a key gets a new id with every
  start. A new node then takes the number over. If the old one comes back, it speaks for the number
  again: the first of the connected nodes that were bound to it does.
* A list that the server's owner made (:mod:`fedmoe_app.server.client_list`) takes the place of
  all that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedmoe_app.config.names import MAX_GIVEN


@dataclass(frozen=True)
class _Claim:
    client: int
    worked: bool  # a good training reply came with it


class Bindings:
    """Which node speaks for which client."""

    def __init__(self) -> None:
        self._clients: dict[int, int] = {}  # node -> number, in the order of binding
        self._speakers: dict[int, int] = {}  # number -> the node that speaks for it
        self._connected: frozenset[int] | None = None  # None: nobody has looked yet
        self._claims: dict[int, _Claim] = {}  # by node, since the last settle
        # number -> node -> whether it has worked for it; unbound nodes that all want it
        self._contested: dict[int, dict[int, bool]] = {}
        self._is_list = False

    @property
    def clients(self) -> dict[int, int]:
        """Node id -> client's number, in the order in which they were bound."""
        return self._clients

    def load(self, clients: Mapping[int, int], is_list: bool = False) -> None:
        """Take bindings of a checkpoint, or of the owner's list, in place of all there were."""
        self._clients = dict(clients)
        self._is_list = is_list
        self._work_out()

    def see(self, nodes: Iterable[int]) -> None:
        """Note which nodes are connected now."""
        self._connected = frozenset(nodes)
        for client, rivals in list(self._contested.items()):
            for node in rivals.keys() - self._connected:
                del rivals[node]
            if len(rivals) < 2:
                del self._contested[client]
        self._work_out()

    def client(self, node: int) -> int | None:
        """Return the number that a node speaks for, None if it speaks for none."""
        client = self._clients.get(node)
        return client if client is not None and self._speakers.get(client) == node else None

    def is_free(self, client: int) -> bool:
        """Whether no connected node has a number, and none contest it."""
        holder = self._speakers.get(client)
        return (holder is None or not self._is_connected(holder)) and client not in self._contested

    def claim(self, node: int, client: int, worked: bool = True) -> str | None:
        """Note what a node says in a reply that is good otherwise.

        Args:
            node: that the reply came from.
            client: the number in it.
            worked: whether the reply is more than the number.

        Returns:
            why it is refused; None if it is right, or will be decided by :meth:`settle`.
        """
        own = self._clients.get(node)
        if own == client and self._speakers[client] == node:
            return None
        if self._is_list:
            return f"it says client {client}, but the client list has it as {_named(own)}"
        claim = _Claim(client, worked)
        return self._refusal(node, claim, own) or self._enter(node, claim)

    def settle(self) -> tuple[dict[int, int], dict[int, str]]:
        """Decide on all claims since the last call together.

        Returns:
            the nodes that were bound, with their numbers; and why others were not, by node.
        """
        by_client: dict[int, dict[int, bool]] = {}  # client -> node -> whether it worked
        for node, claim in sorted(self._claims.items()):
            by_client.setdefault(claim.client, {})[node] = claim.worked
        self._claims.clear()
        bound: dict[int, int] = {}
        refused: dict[int, str] = {}
        for client, nodes in by_client.items():
            first = [node for node, worked in nodes.items() if worked] or list(nodes)
            if len(first) == 1:
                self._bind(first[0], client)
                bound[first[0]] = client
                others = nodes.keys() - set(first)
                refused |= dict.fromkeys(others, _taken(client, first[0]))
                continue
            self._contested[client] = nodes
            refused |= dict.fromkeys(nodes, _contest(client, nodes))
        return bound, refused

    def _refusal(self, node: int, claim: _Claim, own: int | None) -> str | None:
        client = claim.client
        if client >= MAX_GIVEN and client != node:
            return f"client {client}: a number of {MAX_GIVEN} or more can only be the node's own id"
        if own is not None and own != client and not self._has_successor(node, own):
            return (
                f"it is client {own} in this run and says client {client}; start it with "
                f"partition-id = {own} again, or name it in a client list"
            )
        holder = self._speakers.get(client)
        if holder is not None and self._is_connected(holder):
            return _taken(client, holder)
        return self._contest_with(node, claim)

    def _contest_with(self, node: int, claim: _Claim) -> str | None:
        """Refuse a claim while others have as good a one; they are all named."""
        wanting = self._contested.get(claim.client, {})
        others = [worked for other, worked in wanting.items() if other != node]
        if not others or (claim.worked and not any(others)):
            return None
        wanting[node] = claim.worked or wanting.get(node, False)
        return _contest(claim.client, wanting)

    def _enter(self, node: int, claim: _Claim) -> str | None:
        earlier = self._claims.get(node, claim)
        if earlier.client != claim.client:
            return f"it says client {claim.client} and client {earlier.client}"
        self._claims[node] = _Claim(claim.client, claim.worked or earlier.worked)
        return None

    def _bind(self, node: int, client: int) -> None:
        had_one = self._clients.pop(node, None) is not None  # it goes to the end of the order
        self._clients[node] = client
        for rivals in self._contested.values():
            rivals.pop(node, None)
        if had_one:
            self._work_out()
        else:
            self._note_speaker(node, client)

    def _has_successor(self, node: int, client: int) -> bool:
        """Whether another connected node was bound to the number, too, while this one was gone."""
        return any(
            other != node and number == client and self._is_connected(other)
            for other, number in self._clients.items()
        )

    def _is_connected(self, node: int) -> bool:
        return self._connected is None or node in self._connected

    def _work_out(self) -> None:
        """Find who speaks for each number: the first that is connected, else the last there was."""
        self._speakers = {}
        for node, client in self._clients.items():
            self._note_speaker(node, client)

    def _note_speaker(self, node: int, client: int) -> None:
        first = self._speakers.get(client)
        if first is None or not self._is_connected(first):
            self._speakers[client] = node


def _taken(client: int, holder: int) -> str:
    return (
        f"partition-id = {client} is that of node {holder} since an earlier round; give each its "
        "own"
    )


def _contest(client: int, nodes: Iterable[int]) -> str:
    names = sorted(nodes)
    return (
        f"{len(names)} nodes have partition-id = {client} ({', '.join(map(str, names[:4]))}); "
        "give each its own"
    )


def _named(client: int | None) -> str:
    return "no client" if client is None else f"client {client}"
