"""Replies of a round: decoded, validated and put in client order, or rejected with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fedmoe_app.at_once import AtOnce
from fedmoe_app.roster import Roster
from fedmoe_app.spool import Spool, SpoolError
from fedmoe_app.staleness import discounted
from fedmoe_app.wire.records import UpdateSpec, decode_score, decode_update, record_bytes
from fedmoe_app.wire.update import ClientScore, ClientUpdate, InvalidUpdateError


@dataclass
class Decoded:
    """What came of the replies.

    Attributes:
        updates: the usable ones, in client order; their changes may lie in the spool.
        bytes_up: size of each usable reply, by client.
        rejected: reason by client, or by node where the client is not known.
        kinds: how many were rejected, by :attr:`InvalidUpdateError.kind`.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    bytes_up: dict[int, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)


class Intake:
    """Takes the training replies of a round one by one, as they arrive.

    Each is decoded, validated and stored at once, and its message emptied. The result does not
    depend on the order of arrival.

    Args:
        spec: names and shapes that an update may hold.
        roster: knows which node serves which client.
        spool: where the changes wait; None keeps all of them in memory.
        holders: client -> the node that served it in earlier rounds, of those that were asked.
        num_partitions: of the clients in earlier rounds; 0 if none is known.
        at_once: takes what need not wait until the round is complete.
    """

    def __init__(
        self,
        spec: UpdateSpec,
        roster: Roster,
        spool: Spool | None = None,
        holders: Mapping[int, int] | None = None,
        num_partitions: int = 0,
        at_once: AtOnce | None = None,
    ) -> None:
        self._spec, self._roster, self._spool = spec, roster, spool
        self._holders, self._num_partitions = holders or {}, num_partitions
        self._at_once = at_once
        self._rejected: dict[str, str] = {}
        self._kinds: Counter[str] = Counter()
        self._updates: dict[int, dict[int, ClientUpdate]] = {}  # client -> node -> its update
        self._bytes_up: dict[int, int] = {}  # by node
        self.nodes: set[int] = set()  # that gave a good reply

    @property
    def num_usable(self) -> int:
        """Clients with one good reply so far."""
        return sum(self._chosen(client) is not None for client in self._updates)

    def add(
        self, message: Message, node: int | None = None, staleness: int | None = None
    ) -> ClientUpdate | None:
        """Decode, check and store a reply; return None for one that cannot be used.

        Args:
            message: the reply; it is emptied.
            node: the node that was asked.
            staleness: folds since the state that the reply started from; None is a synchronous
                round, in which there is no such thing.
        """
        node = message.metadata.src_node_id if node is None else node
        try:
            update = decode_update(message.content, self._spec)
            if staleness is not None:
                update = discounted(update, staleness)
            self._put(update, node)
            self._bytes_up[node] = record_bytes(message.content)
            self.nodes.add(node)
            return update
        except InvalidUpdateError as error:
            self._reject(message, f"reply rejected: {error}", error.kind)
        except SpoolError as error:
            self._reject(message, f"reply lost: {error}", "disk")
        finally:
            release(message)
        return None

    def finish(self) -> Decoded:
        """Return what is left when all replies are in."""
        decoded = Decoded(rejected=self._rejected, kinds=self._kinds)
        for client, copies in sorted(self._updates.items()):
            node = self._chosen(client)
            self._reject_copies(client, [other for other in copies if other != node], node)
            if node is not None:
                decoded.updates.append(copies[node])
                decoded.bytes_up[client] = self._bytes_up[node]
        _drop_other_splits(decoded, self._num_partitions)
        return decoded

    def _chosen(self, client: int) -> int | None:
        """Return the node whose update of a client counts, None if that cannot be told.

        Of several it is the one that served this client in an earlier round. The first to arrive
        would be no reason.
        """
        copies = self._updates[client]
        if len(copies) == 1:
            return next(iter(copies))
        holder = self._holders.get(client)
        return holder if holder in copies else None

    def _reject_copies(self, client: int, nodes: Sequence[int], holder: int | None) -> None:
        if not nodes:
            return
        self._kinds["client"] += len(nodes)
        if holder is None:
            self._rejected[f"client {client}"] = (
                f"reply rejected: {len(nodes)} nodes have partition-id = {client}; "
                "give each its own"
            )
            return
        for node in nodes:
            self._roster.forget(node)  # it would pass for the client's node in the next round
            self._rejected[f"node {node}"] = (
                f"reply rejected: partition-id = {client} is that of node {holder} since an "
                "earlier round; give each its own"
            )

    def _put(self, update: ClientUpdate, node: int) -> None:
        copies = self._updates.setdefault(update.client, {})
        if node in copies:
            raise InvalidUpdateError("the node has answered before", "client")
        if self._spool is None:
            copies[node] = update
            return
        at_once = self._at_once
        if at_once is None or not at_once.is_next(update, node):
            copies[node] = replace(update, changes=self._spool.store(update.changes))
            if at_once is not None:
                at_once.put_off(update, node)
            return
        copies[node] = at_once.take(update)
        for client, rest in at_once.take_waiting(self._of_holder).items():
            self._updates[client][self._holders[client]] = rest

    def _of_holder(self, client: int) -> ClientUpdate:
        return self._updates[client][self._holders[client]]

    def _reject(self, message: Message, reason: str, kind: str) -> None:
        self._kinds[kind] += 1
        self._rejected[self._roster.name(message.metadata.src_node_id)] = reason


def release(message: Message) -> None:
    """Empty a message that was decoded: what is still needed of its bytes has views on them.

    A RecordDict and the view of its array records hold each other, so that it would stay in memory
    until Python looks for cycles, which large replies do not hasten.
    """
    for record in message.content.array_records.values():
        record.clear()


def _drop_other_splits(decoded: Decoded, known: int) -> None:
    """Reject clients that split the data into another number of partitions than the run does.

    That is ``known``, or what most have if it is 0.
    """
    numbers = Counter(u.num_partitions for u in decoded.updates if u.num_partitions)
    if not numbers or set(numbers) == {known}:
        return
    usual = known or max(numbers, key=lambda number: (numbers[number], -number))
    others = "earlier rounds had" if known else "most nodes have"
    for update in list(decoded.updates):
        if update.num_partitions not in (0, usual):
            decoded.updates.remove(update)
            decoded.kinds["client"] += 1
            del decoded.bytes_up[update.client]
            decoded.rejected[f"client {update.client}"] = (
                f"reply rejected: num-partitions = {update.num_partitions}, but {others} "
                f"{usual}; give all nodes the same"
            )


def decode_scores(
    replies: Iterable[Message], roster: Roster
) -> tuple[list[ClientScore], dict[str, str]]:
    """Decode evaluation replies into scores in client order, and reasons for the rejected ones."""
    by_client: dict[int, list[ClientScore]] = {}
    rejected: dict[str, str] = {}
    for message in replies:
        try:
            score = decode_score(message.content)
        except InvalidUpdateError as error:
            rejected[roster.name(message.metadata.src_node_id)] = f"score rejected: {error}"
            continue
        by_client.setdefault(score.client, []).append(score)
    for client, copies in by_client.items():
        if len(copies) > 1:  # as in Intake: the order of arrival must not decide
            rejected[f"client {client}"] = (
                f"score rejected: {len(copies)} nodes have partition-id = {client}"
            )
    return [c[0] for _, c in sorted(by_client.items()) if len(c) == 1], rejected
