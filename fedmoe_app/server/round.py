"""The round that is going on: what it works with, and what has been noted of it so far.

The only thing of a round that changes. Whoever takes part in the round notes what happened by a
method of it; when the round is over, :meth:`Round.record` makes the immutable
:class:`~fedmoe_app.results.metrics.RoundRecord` that callbacks are given.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fedmoe_app.aggregation.guard import Guarded
from fedmoe_app.config.policy import REFUSED
from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.events import logger
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.other_runs import OtherRuns
from fedmoe_app.server.transport import Reply
from fedmoe_app.shown.text import visible
from fedmoe_app.wire.records import record_bytes
from fedmoe_app.wire.update import ClientUpdate

MAX_REASON = 1000  # characters of a failure's reason that are kept
_NAMED = re.compile(r"client (\d+): (.*)")  # how a client's own errors begin
EVALUATION = " (evaluation)"  # after the name of who failed in it
OF_ALL = ("round", "measuring", "reported model")  # who fails where it is no single client
SOMEBODY = "a client"  # where its name is not told


class Round:
    """A round in progress.

    Args:
        server_round: its number.
        grid: the connection to the nodes.
        arrays: the global state that it starts from.
        timeout: seconds that nodes have to reply.
        registry: knows the clients' names.
        others: is told of nodes that work for another run.
        callbacks: are told of replies and failures.
        expected: clients of a round in the mean, where nothing of single clients is told; None
            where it is.

    Attributes:
        reported: the state that is evaluated in the place of the global one; None is that one.
        failures: reason by client or node.
        aggregated: whether the global model changed.
        evaluation: of the global model.
        validation: of it, on the rows that choose the best round.
        best: what the round's line says of the best one so far.
        diagnostics: of the scheme.
        privacy: what the run has spent so far.
        sums: figures of a masked sum.
    """

    def __init__(
        self,
        server_round: int,
        grid: Grid,
        arrays: ArrayRecord,
        timeout: float,
        registry: ClientRegistry,
        others: OtherRuns,
        callbacks: Sequence[Callback] = (),
        expected: int | None = None,
    ) -> None:
        self.server_round = server_round
        self.grid, self.arrays, self.timeout = grid, arrays, timeout
        self.reported: ArrayRecord | None = None
        self._registry, self._others, self._callbacks = registry, others, callbacks
        self._expected = expected
        self._started = time.monotonic()
        self._bytes_up = self._bytes_down = 0
        self._begin()

    def _begin(self) -> None:
        self.failures: dict[str, str] = {}
        self.num_asked = 0
        self.aggregated = False
        self.diagnostics: Mapping[str, Any] = {}
        self.privacy: Mapping[str, Any] = {}
        self.sums: Mapping[str, Any] = {}
        self._summed: Sequence[int] = ()
        self.evaluation: MetricRecord | None = None
        self.validation: MetricRecord | None = None
        self.best: Mapping[str, Any] = {}
        self._updates: tuple[ClientUpdate, ...] = ()
        self._rejected: Mapping[str, int] = {}
        self._bytes_up_by_client: Mapping[int, int] = {}
        self._bytes_down_to: Mapping[int, int] = {}
        self._bytes_down_to_node: dict[int, int] = {}
        self._lost_state: list[int] = []
        self._guarded: Guarded | None = None
        self._sums_to: Mapping[int, float] = {}
        self._seconds: dict[str, float] = {}
        self._round_trips: dict[str, float] = {}
        self._arrivals: dict[int, float] = {}  # node -> seconds from asking to its training reply
        # Failures of nodes whose client is not known yet: node, phase, reason.
        self._nameless: list[tuple[int, str, str]] = []
        self._to_ask: set[int] = set()  # nodes that would tell it

    @property
    def scored(self) -> ArrayRecord:
        """The state that is evaluated."""
        return self.arrays if self.reported is None else self.reported

    def repeat(self) -> None:
        """Forget the round so far but for the bytes that it took: it is done anew."""
        self._begin()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note how long a phase takes."""
        started = time.monotonic()
        yield
        self._seconds[phase] = time.monotonic() - started

    # -- messages out ------------------------------------------------------------------------------

    def announce(self, num_asked: int) -> None:
        """Tell how many clients are asked to train."""
        told = num_asked if self._expected is None else self._expected
        for callback in self._callbacks:
            callback.on_ask(self.server_round, told)

    def sent(self, sizes: Mapping[int, int], to_train: bool) -> None:
        """Note messages: bytes by node."""
        self._bytes_down += sum(sizes.values())
        if to_train:
            self._bytes_down_to_node |= sizes

    def sent_bytes(self, size: int) -> None:
        """Note bytes of any other message."""
        self._bytes_down += size

    # -- replies in --------------------------------------------------------------------------------

    def arrived(self, reply: Reply, phase: str = "") -> None:
        """Note the size of a reply that has content, and when a training reply came."""
        assert reply.message is not None
        self.received(reply)
        if not phase:
            self._arrivals[reply.node_id] = reply.seconds

    def received(self, reply: Reply) -> None:
        """Note the size of a reply of any kind."""
        if reply.message is not None and reply.message.has_content():
            self._bytes_up += record_bytes(reply.message.content)

    def came(self, client: int) -> None:
        """Tell of a masked reply, which tells nothing but whose it is."""
        for callback in self._callbacks:
            callback.on_reply(f"client {client}", {"client": client})

    def good(self, update: ClientUpdate) -> None:
        """Tell of a training reply that is good."""
        if self._is_private:
            return
        counts = {
            "client": update.client,
            "num-examples": update.num_examples,
            "num-partitions": update.num_partitions,
        }
        for callback in self._callbacks:
            callback.on_reply(f"client {update.client}", counts | update.metrics)

    def unusable(self, node: int) -> None:
        """Note that a reply cannot be used: its node is asked for its client's number."""
        self._to_ask.add(node)

    def ask_names(self) -> None:
        """Ask the nodes that failed for their clients' numbers, where these are not known."""
        self._registry.ask(self.grid, self._to_ask)
        self._to_ask.clear()

    # -- failures ----------------------------------------------------------------------------------

    def fail(self, who: str, reason: str) -> None:
        """Note a failure of a client, a node, or the round."""
        if self._is_private and who not in OF_ALL:
            self._others.note(SOMEBODY, reason)
            return
        reason = visible(reason, MAX_REASON)
        self._others.note(who, reason)
        self.failures[who] = reason
        for callback in self._callbacks:
            callback.on_failure(who, reason)

    def fail_node(self, reply: Reply, phase: str = "", reason: str | None = None) -> None:
        """Note a node's failure, under its client's name; that may have to be asked for first."""
        reason = reason or reply.failure or "no reason given"
        if self._registry.client(reply.node_id) is None and reply.is_own:
            self._to_ask.add(reply.node_id)
            self._nameless.append((reply.node_id, phase, reason))
        else:
            self._fail_named(reply.node_id, phase, reason)

    def _fail_named(self, node: int, phase: str, reason: str) -> None:
        """Note a failure without the name that the reason begins with, if that is the right one."""
        who, named = self._registry.name(node), _NAMED.fullmatch(reason)
        is_own_name = named is not None and who == f"client {named[1]}"
        self.fail(who + phase, named[2] if named and is_own_name else reason)

    def name_failures(self) -> None:
        """Note the failures that waited for their client's name, when claims are settled."""
        for node, phase, reason in self._nameless:
            self._fail_named(node, phase, reason)
        self._nameless.clear()
        for node, reason in sorted(self._registry.refused.items()):
            if f"node {node}" not in self.failures:
                self.fail(f"node {node}", reason)
        self._registry.refused.clear()

    def reasons(self) -> str:
        """Return why clients failed, each reason once."""
        by_reason: dict[str, list[str]] = {}
        for who, why in self.failures.items():
            by_reason.setdefault(why, []).append(who)
        reasons = "; ".join(f"{', '.join(who)}: {why}" for why, who in by_reason.items())
        return reasons or "no reasons given"

    @property
    def _is_private(self) -> bool:
        """Whether nothing of single clients is told."""
        return self._expected is not None

    @property
    def working_elsewhere(self) -> Collection[str]:
        """Names of the nodes that work for another run."""
        return self._others.nodes

    # -- what came of it ---------------------------------------------------------------------------

    def collected(self, rejected: Mapping[str, int]) -> None:
        """Note that all replies are in: how many were rejected, and who took how long."""
        self._rejected = dict(rejected)
        self._round_trips = {self._registry.name(n): s for n, s in self._arrivals.items()}

    def lost_state(self, client: int) -> None:
        """Note that a client has lost what it kept."""
        self._lost_state.append(client)

    @property
    def bytes_so_far(self) -> tuple[int, int]:
        """Bytes up and down."""
        return self._bytes_up, self._bytes_down

    def note_aggregated(
        self,
        updates: Sequence[ClientUpdate],
        bytes_up: Mapping[int, int],
        guarded: Guarded | None = None,
        summed: Sequence[int] = (),
    ) -> None:
        """Note what the new global model was made of.

        Args:
            updates: of the clients.
            bytes_up: by client.
            guarded: what the guard did.
            summed: clients whose masked changes the one update is made of.
        """
        self._summed = tuple(summed)
        self.aggregated = True
        if self._is_private or summed:
            return
        self._guarded = guarded
        # The record outlives the round; the changes do not.
        self._updates = tuple(
            replace(update, changes=ModelState(), statistics={}) for update in updates
        )
        self._bytes_up_by_client = dict(bytes_up)
        self._bytes_down_to = self._registry.by_client(self._bytes_down_to_node)

    def note_bounded(self, factors: Mapping[int, float]) -> None:
        """Note what is left of the sums that clients sent without training, and tell of it.

        Args:
            factors: by client, 1 for all; empty without a guard.
        """
        self._sums_to = dict(factors)
        less = [f"client {client} by {f:.3g}" for client, f in factors.items() if f < 1]
        if less:
            logger.info("sums beyond what one client may have, multiplied: %s", ", ".join(less))

    def record(self, metric: str) -> RoundRecord:
        """Return what happened, now that the round is over."""
        if self._is_private:
            return self._private_record(metric)
        return RoundRecord(
            self.server_round,
            metric,
            self.aggregated,
            self.num_asked,
            self._updates,
            failures=dict(self.failures),
            rejected=self._rejected_or_refused(),
            bytes_up=self._bytes_up_by_client,
            bytes_up_total=self._bytes_up,
            bytes_down_to=self._bytes_down_to,
            bytes_down=self._bytes_down,
            lost_state=tuple(self._lost_state),
            guarded=self._guarded,
            sums_to=self._sums_to,
            diagnostics=self.diagnostics,
            evaluation=self.evaluation,
            validation=self.validation,
            best=self.best,
            seconds=self._seconds | {"round": time.monotonic() - self._started},
            round_trips=self._round_trips,
            sums=dict(self.sums),
            num_summed=len(self._summed),
        )

    def _rejected_or_refused(self) -> Mapping[str, int]:
        """Count the clients whose nodes' policies refuse with the others, each once.

        One may train and not score: what it refuses is not known before the evaluation.
        """
        who = {
            name.removesuffix(EVALUATION) for name, why in self.failures.items() if REFUSED in why
        }
        return {**self._rejected, "refused": len(who)} if who else self._rejected

    def _private_record(self, metric: str) -> RoundRecord:
        """Return what happened without a word of single clients, or of how many there were."""
        return RoundRecord(
            self.server_round,
            metric,
            self.aggregated,
            failures=dict(self.failures),
            evaluation=self.evaluation,
            validation=self.validation,
            best=self.best,
            seconds={"round": time.monotonic() - self._started},
            privacy=dict(self.privacy),
            is_private=True,
        )
