"""MoEStrategy: what clients are sent, and how their replies become the next global model.

The methods have the names of Flower's ``Strategy``. Here they are given the round in progress, and
:class:`~fedmoe_app.server.rounds.RoundLoop` calls them in place of Flower's own loop, which waits
for ever for missing nodes, polls slowly and lets a round in which all clients failed pass as one.

The file is long because every step here reads or moves the same few values (state, version,
broadcast, clients): in files of their own the steps would hand all of them to one another.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedmoe_app.aggregation.aggregate import FoldError, aggregate, reported
from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.guard import Guard
from fedmoe_app.aggregation.streaming import AtOnce, RunningSums, replies_of, round_info
from fedmoe_app.config.policy import REFUSED
from fedmoe_app.moe.state import ModelState
from fedmoe_app.privacy.client_level import private_plan
from fedmoe_app.privacy.member import SumError
from fedmoe_app.results.events import LateReply, logger, tell
from fedmoe_app.schemes.base import Plan, Run, Scheme, flat_signals
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.parts import Step
from fedmoe_app.schemes.views import RoundInfo
from fedmoe_app.server.assigning import Assignments
from fedmoe_app.server.busy import BusyNodes
from fedmoe_app.server.clients import ClientRegistry, sample_size
from fedmoe_app.server.collect import Collected, UpdateCollector, decode_scores
from fedmoe_app.server.measuring import (
    PHASE,
    QUERY,
    Answers,
    bounded,
    decode_measured,
    info_of,
    moved,
    specs_of,
    told_after,
)
from fedmoe_app.server.placement import Placements, placed_arrays
from fedmoe_app.server.private import PrivateRounds
from fedmoe_app.server.round import EVALUATION, Round
from fedmoe_app.server.settings import Aggregation, ClientTask, Limits
from fedmoe_app.server.summed import MaskedSums
from fedmoe_app.server.sync import DeltaSync
from fedmoe_app.server.transport import exchange, is_deployed, wait_for_nodes
from fedmoe_app.wire.arrays import ArrayBuffers, encode_one_by_one, view_state
from fedmoe_app.wire.metrics import NUM_TEST_ITEMS
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import (
    UpdateSpec,
    encode_state,
    encode_task,
    encode_tensors,
    record_bytes,
)
from fedmoe_app.wire.update import ClientUpdate

REPORTED = "reported."  # how the names of the reported model's state begin
FORGET_SECONDS = 30.0  # to wait for the nodes to drop what they kept


class MoEStrategy:
    """Sparse federated averaging of MoE models; the scheme decides on weights and broadcasts.

    Args:
        scheme: the server's half of the aggregation scheme.
        limits: numbers of clients and waiting times.
        task: what clients are told.
        registry: the clients, and who of them is drawn.
        aggregation: where and how changes are summed.
        placements: which experts each node has; None where all nodes have all.
        private: draws clients and bounds their changes, where the run has differential privacy.
        sums: lets clients mask what they send; None where the server sees it.
        root: trains a state on the server's own rows in a round; None where no part asks for it.

    Attributes:
        state: the global model.
        num_aggregated: rounds so far that changed it, which is its version.
        last_replies: client -> its last round with a usable reply.
    """

    def __init__(
        self,
        scheme: Scheme,
        limits: Limits | None = None,
        task: ClientTask | None = None,
        registry: ClientRegistry | None = None,
        aggregation: Aggregation | None = None,
        placements: Placements | None = None,
        private: PrivateRounds | None = None,
        sums: MaskedSums | None = None,
        root: Callable[[ModelState, int], ModelState] | None = None,
    ) -> None:
        self.scheme = scheme
        self._root = root
        self.limits = limits or Limits()
        self.task = task or ClientTask()
        self.plan = Plan.of(scheme, self.task.shape)
        self.step_state: dict[str, Tensor] | None = None  # of the server's steps
        self.registry = registry or ClientRegistry()
        self.aggregation = aggregation or Aggregation()
        self.placements = placements
        self.private, self.sums = private, sums
        if private is not None:
            self.plan = private_plan(self.plan, private.level, private.randomness)
        self.assignments = Assignments.of(self.plan, self.task.shape, placements)
        self.run_key = self.task.run_key or secrets.token_hex(16)
        self.sync = DeltaSync(self.task.changed_only, self.task.download_codec)
        self.busy = BusyNodes(self._late_reply)
        self.state = ModelState()
        self.broadcast: dict[str, Tensor] = {}
        self.num_aggregated = 0
        self.last_replies: dict[int, int] = {}
        self._num_partitions = 0  # into which the clients of earlier rounds split the data
        self._info: RoundInfo | None = None  # of the last round that was aggregated
        self.begin_sums()

    @property
    def guard(self) -> Guard | None:
        """What bounds a client's influence on a round."""
        return self.aggregation.guard

    @property
    def region_size(self) -> int:
        """Values of a region in a reply; 0 where the scheme needs none."""
        return self.task.shape.hidden_size if self.plan.needs_regions else 0

    def summary(self) -> None:
        """Log the scheme and the limits."""
        logger.info("scheme: %s", self.scheme)
        for warning in self.plan.check(Run(self.task.shape)):
            logger.info("warning: %s", warning)
        share, fixed = self.limits.fraction_train, self.limits.clients_per_round
        asked = "all connected clients" if share == 1 else f"{share:.0%} of the connected clients"
        asked = f"{fixed} of the connected clients" if fixed else asked
        logger.info("each round: %s, at least %d", asked, self.limits.min_clients)

    def end_run(self, grid: Grid, forget: bool = True, prefix: bool = False) -> None:
        """Tell the nodes that the run has ended; call it when a complete run's model is saved.

        They are free for another one then, and drop what they kept if they are to ``forget`` it. A
        node that does not hear it does the first after some minutes and the second after some
        weeks. Hidden states of a frozen ``prefix`` are dropped in any case.
        """
        keeps = self.task.changed_only or self.task.offer.keeps_residuals or self.sums is not None
        drop = forget and (self.plan.keeps_state or self.plan.recalls or keeps)
        if not drop and not prefix and not is_deployed(grid):
            return
        content = RecordDict({"task": ConfigRecord({"run-key": self.run_key, "drop": drop})})
        try:
            nodes = sorted(grid.get_node_ids())
            messages = [Message(content, node, "query.forget") for node in nodes]
            for _ in exchange(grid, messages, FORGET_SECONDS):
                pass
        except Exception as error:  # the run is complete, whatever happens to the nodes' files
            logger.info("the nodes were not told to drop what they kept: %s", error)

    # -- messages out --------------------------------------------------------------------------

    def choose(self, now: Round) -> list[int]:
        """Choose the nodes of a round: wait for enough, draw, let them choose their experts."""
        limits = self.limits
        self.registry.question = self.question(now.server_round)
        nodes = wait_for_nodes(
            now.grid, limits.min_clients, limits.wait_for_clients, self.busy, self.connected
        )
        if self.private is not None:
            self.private.ledger.check()  # before anybody trains in vain
            nodes = self.private.draw(nodes)
            now.num_asked = len(nodes)
            return nodes
        awake = self.registry.awake(now.grid, nodes, now.server_round, limits.min_clients)
        size = min(self.sample_size(len(nodes)), len(awake))
        nodes = self.registry.draw(now.grid, awake, now.server_round, size)
        now.num_asked = len(nodes)
        return (
            nodes if self.placements is None else self._ask_to_choose(now, self.placements, nodes)
        )

    def sample_size(self, num_nodes: int) -> int:
        """Return how many of the connected nodes train at a time."""
        limits = self.limits
        return sample_size(
            num_nodes, limits.fraction_train, limits.min_clients, limits.clients_per_round
        )

    def connected(self, grid: Grid) -> list[int]:
        """Return the connected nodes that may take part, sorted by id."""
        return self.registry.connected(grid)

    def configure_train(
        self, now: Round, nodes: Sequence[int], more: Mapping[str, ConfigRecord] | None = None
    ) -> list[Message]:
        """Return the messages that ask these nodes to train; ``more`` are further records."""
        return self._address(now, nodes, MessageType.TRAIN, more)

    def configure_evaluate(self, now: Round, nodes: Sequence[int]) -> list[Message]:
        """Return the messages that ask nodes to score the global model on their own examples."""
        if (placements := self.placements) is not None:
            # A node that has not trained yet would score a model without experts.
            nodes = [node for node in nodes if placements.of(self.registry, node)]
        return self._address(now, nodes, MessageType.EVALUATE, arrays=now.scored)

    def question(self, server_round: int) -> Question:
        """Return what a message of this round with the present state asks about."""
        return Question(server_round, self.run_key, self.num_aggregated)

    def _ask_to_choose(self, now: Round, placements: Placements, nodes: Sequence[int]) -> list[int]:
        """Ask the nodes that have not told which experts they hold; return those that have."""
        unknown = [node for node in nodes if placements.of(self.registry, node) is None]
        content = self._content(now.server_round, placed_arrays(now.arrays, None))
        now.sent_bytes(record_bytes(content) * len(unknown))
        for reply, why in placements.ask(now.grid, unknown, content, self.registry):
            now.received(reply)
            if why is not None:
                now.fail_node(reply, reason=why)
            self.busy.note(reply, placements.timeout)
        return [node for node in nodes if placements.of(self.registry, node) is not None]

    def _address(
        self,
        now: Round,
        nodes: Sequence[int],
        kind: str,
        more: Mapping[str, ConfigRecord] | None = None,
        arrays: ArrayRecord | None = None,
    ) -> list[Message]:
        """Return one message a node, with what it holds and lacks of the state, or of others."""
        content = self._content(now.server_round, now.arrays if arrays is None else arrays)
        content.update(more or {})
        group = str(now.server_round)
        if self.placements is None:
            own = {}
            if self.assignments is not None and kind == MessageType.TRAIN:
                own = self.assignments.records(self.registry, nodes)
            messages, sizes = self.sync.address(content, nodes, kind, group, own)
        else:
            messages, sizes = [], {}
            for node in nodes:
                part = self.placements.content_for(self.registry, node, content)
                message, size = self.sync.address(part, [node], kind, group)
                messages, sizes = messages + message, sizes | size
        now.sent(sizes, to_train=kind == MessageType.TRAIN)
        return messages

    def _content(self, server_round: int, arrays: ArrayRecord) -> RecordDict:
        task = self.task
        return encode_task(
            arrays,
            server_round,
            task.label_names,
            task.data_fingerprint,
            self.broadcast,
            run_key=self.run_key,
            base_fingerprint=task.base_fingerprint,
            offer=task.offer,
            state_version=self.num_aggregated,
        )

    # -- without training -----------------------------------------------------------------------

    def measure(self, now: Round, steps: Sequence[Step]) -> ArrayRecord | None:
        """Ask all connected nodes for what these steps hold; return the moved state.

        Returns None, and leaves the state as it was, if fewer than ``min_clients`` replies can be
        used, or a step failed.
        """
        limits = self.limits
        self.registry.question = question = self.question(now.server_round)
        nodes = wait_for_nodes(
            now.grid, limits.min_clients, limits.wait_for_clients, self.busy, self.connected
        )
        logger.info("%d clients measure the model; nobody trains", len(nodes))
        content = self._content(now.server_round, now.arrays)
        if self.sums is not None:
            return self._measure_masked(now, nodes, content, steps)
        now.sent_bytes(record_bytes(content) * len(nodes))
        answers = decode_measured(
            self._measured(now, [Message(content, node, QUERY) for node in nodes]),
            *(self.registry, question, specs_of(self.plan.measured_apart, self.state)),
            self.plan.measured_apart,
        )
        now.name_failures()
        for who, why in answers.rejected.items():
            now.fail(f"{who}{PHASE}", why)
        if len(answers.by_client) < limits.min_clients:
            now.fail(
                "measuring",
                f"{len(answers.by_client)} usable replies of {len(nodes)} clients asked, "
                f"min-clients = {limits.min_clients}; the global model stays as it was",
            )
            return None
        return self._moved_by(now, steps, answers)

    def _moved_by(self, now: Round, steps: Sequence[Step], answers: Answers) -> ArrayRecord | None:
        """Bound what single clients sent, and let the steps move the state."""
        try:
            answers = bounded(answers, self.plan.measured_apart, self.guard)
        except PartError as error:
            now.fail("measuring", f"{error} ({self.scheme}); the global model stays as it was")
            return None
        now.note_bounded(answers.factors)
        return self._moved(now, steps, list(answers.by_client.values()), answers.is_bounded)

    def _measure_masked(
        self, now: Round, nodes: Sequence[int], content: RecordDict, steps: Sequence[Step]
    ) -> ArrayRecord | None:
        assert self.sums is not None
        try:
            specs = specs_of(self.plan.measured_apart, self.state)
            total = self.sums.measured(self, now, nodes, content, specs)
        except (SumError, ValueError) as error:
            now.name_failures()
            now.fail("measuring", f"{error}; the global model stays as it was")
            return None
        return self._moved(now, steps, [total])

    def _moved(
        self,
        now: Round,
        steps: Sequence[Step],
        statistics: Sequence[Mapping[str, Tensor]],
        is_bounded: bool = False,
    ) -> ArrayRecord | None:
        try:
            info = info_of(now.server_round, statistics, is_bounded)
            found = moved(self.state, steps, info)
            told = told_after(found, steps, info)
        except PartError as error:
            now.fail("measuring", f"{error} ({self.scheme}); the global model stays as it was")
            return None
        arrays = encode_state(found)
        self.state = view_state(arrays)
        self.broadcast |= told
        return arrays

    def _measured(self, now: Round, messages: Sequence[Message]) -> Iterator[Message]:
        for reply in exchange(now.grid, messages, now.timeout):
            self.busy.note(reply, now.timeout)
            now.received(reply)
            if reply.failure is not None:
                now.fail_node(reply, PHASE)
            elif reply.message is not None:
                yield reply.message
        now.ask_names()

    # -- replies in ----------------------------------------------------------------------------

    def exchange(
        self, now: Round, messages: Sequence[Message], phase: str = ""
    ) -> Iterator[Message]:
        """Send messages, pull the replies as they arrive, and yield those with content.

        Nothing of a reply is looked at here but its size. Nothing here holds a reply when the next
        one is pulled: it may be gigabytes.
        """
        for reply in self.sync.exchange(now.grid, messages, now.timeout, now.sent_bytes):
            self.busy.note(reply, now.timeout)
            if reply.failure is not None:
                now.fail_node(reply, phase)
            elif reply.message is not None:
                now.arrived(reply, phase)
                yield reply.message
            del reply
        now.ask_names()

    def adjusted(self, update: ClientUpdate) -> ClientUpdate:
        """Return a good reply as it is aggregated."""
        return update if self.private is None else self.private.bounded(update)

    def collector(self, asked: Sequence[int], question: Question) -> UpdateCollector:
        """Return what takes the replies of these nodes, summing at once what can be."""
        holders = self.registry.holders(asked)
        self.begin_sums()
        streaming, split = None, self._num_partitions
        # A node whose client is not known may be any; placements are checked at the end.
        if len(holders) == len(asked) and self.placements is None:
            streaming = AtOnce(self._sums, holders, split, self.aggregation.store)
        return UpdateCollector(
            *(self.update_spec(), self.registry, self.aggregation.store, holders, split, streaming),
            question=question,
            # Under differential privacy a reply tells no counts.
            bounds=self.task.bounds if self.private is None else None,
            guard=self.guard,
            num_asked=len(asked),
        )

    def begin_sums(self) -> None:
        """Begin the sums of a round."""
        self._buffers = ArrayBuffers()
        experts = not self.aggregation.diagnose or self.private is not None
        self._sums = RunningSums(self.plan.server, experts, self.state, self._buffers.zeros)

    def update_spec(self) -> UpdateSpec:
        """Return what a reply to the present state may hold."""
        task = self.task
        chooses = self.placements is not None and self.assignments is None
        top_k = task.shape.top_k if chooses else 0
        spec = UpdateSpec.of(self.state, self.region_size, task.offer.codecs, top_k)
        return replace(spec, statistics=specs_of(self.plan.measured, self.state))

    def aggregate_train(self, now: Round, collected: Collected) -> ArrayRecord | None:
        """Aggregate what came of a round's replies into the next global state.

        Returns None, and leaves the state as it was, if fewer than ``min_clients`` replies can be
        used, or their sum is no number.
        """
        self._note(now, collected)
        updates = collected.updates
        fault = collected.fault or self._too_few(now, len(collected.summed or updates))
        if fault:
            now.fail("round", f"{fault}; the global model stays as it was")
            return None
        arrays = self._aggregate(now, updates)
        if arrays is None:
            return None
        now.note_aggregated(updates, collected.bytes_up, collected.guarded, collected.summed)
        if self.guard is not None:
            self.guard.learn({update.client: collected.sizes[update.client] for update in updates})
        known = [update.num_partitions for update in updates if update.num_partitions]
        self._num_partitions = known[0] if known else self._num_partitions
        self.num_aggregated += 1
        return arrays

    def _too_few(self, now: Round, usable: int) -> str:
        """Return why so few usable replies make no round; "" if they do."""
        if self.private is not None:
            # Noise on fewer is as good; how many there were is nobody's business.
            return "no usable reply" if now.num_asked and not usable else ""
        if usable >= self.limits.min_clients:
            return ""
        return (
            f"{usable} usable replies of {now.num_asked} clients asked, "
            f"min-clients = {self.limits.min_clients}"
        )

    def _note(self, now: Round, collected: Collected) -> None:
        """Note who failed and what the others told of themselves."""
        if self.placements is not None:
            collected.updates, strange = self.placements.accept(collected.updates)
            collected.rejected |= strange
            collected.kinds["client"] += len(strange)
        for who, why in collected.rejected.items():
            now.fail(who, why)
        now.name_failures()
        # A node whose policy does not allow the run has not failed: it is asked like any other. Nor
        # has one that went another way; that is the server's word, not what a node says of itself.
        refused = {who for who, why in now.failures.items() if REFUSED in why}
        if collected.guarded is not None:
            refused |= {f"client {client}" for client in collected.guarded.against}
        now.collected(collected.kinds)
        if self.private is not None:
            return  # sizes, failures and rests would lie in the checkpoint
        registry = self.registry
        # A masked sum is nobody's update.
        updates = [] if collected.summed else collected.updates
        clients = collected.summed or [update.client for update in updates]
        registry.sizes |= {update.client: update.counted for update in updates}
        registry.tests |= {u.client: int(u.metrics.get(NUM_TEST_ITEMS, 0)) for u in updates}
        good = [f"client {client}" for client in clients]
        # Who works for another run is waited for, and has not failed.
        waited_for = now.working_elsewhere if len(clients) < self.limits.min_clients else ()
        failed = [who for who in now.failures if who not in waited_for and who not in refused]
        registry.cooldown.note(now.server_round, failed, good)
        self._note_lost_state(now, updates)

    def _aggregate(self, now: Round, updates: Sequence[ClientUpdate]) -> ArrayRecord | None:
        """Aggregate the updates, or say why the global state stays as it was."""
        info = round_info(now.server_round, updates)
        diagnostics = self._diagnostics(info)
        if self.private is not None:
            self.private.ledger.spend()
            now.privacy = self.private.ledger.figures()
        try:
            outcome = aggregate(
                *(self.state, updates, self.plan, info, self.step_state),
                sums=self._sums,
                pairs=self.aggregation.pairs,
                diagnostics=diagnostics,
                root=self._root(self.state, now.server_round) if self._root else None,
            )
            arrays = encode_one_by_one(outcome.tensors, self._buffers)
            if self.assignments is not None:
                self.assignments.renew(replies_of(updates))
        except (FoldError, PartError) as error:
            logger.debug("round %d", now.server_round, exc_info=error)  # where in an own part
            now.fail("round", f"{error} ({self.scheme}); the global model stays as it was")
            return None
        self.state = view_state(arrays)
        if diagnostics is not None:
            now.diagnostics = diagnostics.result(self.plan.server, info)
        apart = self.plan.told_apart  # is told until the next exchange of its kind
        told_on = {k: t for k, t in self.broadcast.items() if k.partition("/")[0] in apart}
        self.broadcast = told_on | flat_signals(outcome.told)
        assigned = self.assignments.state() if self.assignments is not None else {}
        kept = {k: t for k, t in (self.step_state or {}).items() if k.startswith(REPORTED)}
        self.step_state = outcome.state | assigned | kept
        self._info = info
        return arrays

    def report(self, now: Round) -> ArrayRecord | None:
        """Return the model that is evaluated and saved in the place of the global one.

        None where the scheme has no such, and where a part of it failed: what was reported before
        stays then.
        """
        steps = self.plan.server.reported
        if not steps:
            return None
        info, state = self._info or info_of(now.server_round, ()), self.step_state or {}
        try:
            values, own = reported(dict(self.state.named()), steps, info, state)
        except (FoldError, PartError) as error:
            now.fail("reported model", f"{error} ({self.scheme}); it stays as it was")
            return None
        others = {k: t for k, t in state.items() if not k.startswith(REPORTED)}
        self.step_state = others | own
        return encode_tensors(values)

    def _diagnostics(self, info: RoundInfo) -> Diagnostics | None:
        if not self.aggregation.diagnose or self.private is not None or self.sums is not None:
            return None
        layers, experts = info.routing[0].count.shape
        return Diagnostics(layers, experts)

    def _note_lost_state(self, now: Round, updates: Sequence[ClientUpdate]) -> None:
        """Tell which clients should have kept something of an earlier round and have not."""
        for update in updates:
            expected = self.last_replies.get(update.client, 0)
            found = int(update.metrics.get("kept-round", 0))
            if self.plan.keeps_state and found < expected:
                now.lost_state(update.client)
                start = f"what it kept of round {found}" if found else "the global model"
                logger.info(
                    "client %d: what it kept of round %d is lost; it started from %s",
                    *(update.client, expected, start),
                )
            self.last_replies[update.client] = update.server_round

    def aggregate_evaluate(self, now: Round, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up the clients' scores; None if nobody has test examples."""
        question = self.question(now.server_round)
        scores, rejected = decode_scores(replies, self.registry, question, self.task.bounds)
        now.name_failures()
        for who, why in rejected.items():
            now.fail(f"{who}{EVALUATION}", why)
        items = sum(score.items for score in scores)
        if not items:
            return None
        loss = sum(score.loss for score in scores) / items
        correct = sum(score.correct for score in scores)
        return MetricRecord({"loss": loss, "accuracy": correct / items, "items": items})

    def _late_reply(self, node_id: int, content: RecordDict) -> None:
        """Tell of a late reply; nothing is learnt from it."""
        if self.private is None:
            tell(LateReply(self.registry.name(node_id)))
