"""MoEStrategy: a Flower strategy that folds sparse expert updates as a scheme says.

It follows Flower's ``Strategy``: ``configure_train`` makes the messages of a round,
``aggregate_train`` validates and folds the replies. The loop over rounds is in ``rounds.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedmoe_app.aggregation.aggregate import FoldError, aggregate
from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.aggregation.streaming import AtOnce, RunningSums, round_info
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.metrics import RoundReport
from fedmoe_app.schemes.base import Plan, Run, Scheme, flat_signals
from fedmoe_app.schemes.parts import Step
from fedmoe_app.schemes.sums import PairRule
from fedmoe_app.server.checkpoint import Counters, Snapshot
from fedmoe_app.server.client_list import ClientList
from fedmoe_app.server.clients import sample_size
from fedmoe_app.server.collect import Decoded, Intake, decode_scores
from fedmoe_app.server.measuring import QUERY, decode_measured, moved, specs_of
from fedmoe_app.server.placement import Placements, placed_arrays
from fedmoe_app.server.rounds import Limits, RoundLoop, RunFailedError
from fedmoe_app.server.sync import Downloads
from fedmoe_app.server.transport import Reply, exchange, is_deployed, wait_for_nodes
from fedmoe_app.wire.arrays import ArrayBuffers, encode_one_by_one, view_state
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.codecs import Offer
from fedmoe_app.wire.metrics import NUM_TEST_ITEMS
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import UpdateSpec, encode_state, encode_task, record_bytes
from fedmoe_app.wire.update import ClientUpdate

FORGET_SECONDS = 30.0  # to wait for the nodes to drop what they kept
RELEASE_SECONDS = 60.0  # to wait for the nodes to note that they are free


class MoEStrategy(RoundLoop):
    """Sparse federated averaging of MoE models; the scheme decides on weights and broadcasts.

    Args:
        scheme: the server's half of the aggregation scheme.
        limits: numbers of clients and waiting times.
        shape: of the model; the hidden size is checked where clients send regions.
        seed: fixes which clients are drawn in a round.
        label_names, data_fingerprint, base_fingerprint: sent to the clients, so that all agree on
            the data and on the frozen base model.
        run_key: names this run in what clients keep between rounds; hexadecimal.
        offer: how the clients may encode their replies.
        changed_only, download_codec: see :class:`fedmoe_app.server.sync.Downloads`.
        forget: let the clients drop what they kept when the run is complete.
        diagnose: work out the scheme's diagnostics of every round.
        spool: where the changes of a round wait until all replies are in.
        pairs: how cosines between clients' changes are worked out.
        on_round: called with the report of every round, 0 (the initial model) included.
        placements: which experts each node has; None where all nodes have all.
    """

    def __init__(
        self,
        scheme: Scheme,
        limits: Limits,
        *,
        seed: int = 0,
        shape: ModelShape | None = None,
        label_names: Sequence[str] = (),
        data_fingerprint: str = "",
        base_fingerprint: str = "",
        run_key: str = "",
        offer: Offer | None = None,
        changed_only: bool = True,
        download_codec: str = "fp32",
        forget: bool = True,
        diagnose: bool = True,
        spool: Spool | None = None,
        pairs: PairRule | None = None,
        on_round: Callable[[RoundReport], None] = lambda report: None,
        placements: Placements | None = None,
        bounds: TaskBounds | None = None,
        client_list: ClientList | None = None,
    ) -> None:
        super().__init__(limits, seed=seed, on_round=on_round, client_list=client_list)
        self.scheme = scheme
        self.shape = shape or ModelShape(0, 1, 1)
        self.plan = Plan.of(scheme, self.shape)
        self.step_state: dict[str, Tensor] | None = None  # of the server's steps
        self.run_key = run_key or secrets.token_hex(16)
        self.offer = offer or Offer()
        self.downloads = Downloads(changed_only, download_codec, self._count_resend)
        self._keeps = changed_only or self.offer.keeps_residuals
        self.forget = forget
        self.placements = placements
        self.bounds = bounds or TaskBounds()
        self.diagnose = diagnose
        self.spool = spool or Spool()
        self.pairs = pairs or PairRule(seed=seed)
        self.region_size = self.shape.hidden_size if self.plan.needs_regions else 0
        self.label_names = tuple(label_names)
        self.data_fingerprint = data_fingerprint
        self.base_fingerprint = base_fingerprint
        self.broadcast: dict[str, Tensor] = {}
        self._asked: tuple[int, ...] = ()  # nodes of the round
        self._begin_sums()
        self._num_partitions = 0  # into which the clients of earlier rounds split the data
        self._last_replies: dict[int, int] = {}  # client -> its last round with a usable reply

    def summary(self) -> None:
        """Log the scheme and the limits."""
        self.progress.say(f"scheme: {self.scheme}")
        for warning in self.plan.check(Run(self.shape)):
            self.progress.say(f"warning: {warning}")
        share, fixed = self.limits.fraction_train, self.limits.clients_per_round
        asked = "all connected clients" if share == 1 else f"{share:.0%} of the connected clients"
        asked = f"{fixed} of the connected clients" if fixed else asked
        self.progress.say(f"each round: {asked}, at least {self.limits.min_clients}")

    def end_run(self, grid: Grid) -> None:
        """Tell the nodes that the run has ended; call it when a complete run's model is saved.

        They are free for another one then, and drop what they kept. A node that does not hear it
        does the first after some minutes and the second after some weeks.
        """
        drop = self.forget and (self.plan.keeps_state or self._keeps)
        if not drop and not is_deployed(grid):
            return
        content = RecordDict({"task": ConfigRecord({"run-key": self.run_key, "drop": drop})})
        try:
            nodes = sorted(grid.get_node_ids())
            messages = [Message(content, node, "query.forget") for node in nodes]
            for _ in exchange(grid, messages, FORGET_SECONDS):
                pass
        except Exception as error:  # the run is complete, whatever happens to the nodes' files
            self.progress.say(f"the nodes were not told to drop what they kept: {error}")

    def free_nodes(self, grid: Grid, seconds: float) -> int:
        """Ask the nodes whether they may work for this run; return how many say so in time."""
        content = RecordDict({"task": ConfigRecord({"run-key": self.run_key})})
        nodes = self.busy.free(grid, sorted(grid.get_node_ids()))
        messages = [Message(content, node, "query.free") for node in nodes]
        self.others.begin_round()
        count = 0
        for reply in exchange(grid, messages, seconds):
            count += reply.failure is None
            if reply.failure is not None:
                self.others.note(self.roster.name(reply.node_id), reply.failure)
        return count

    def release_nodes(self, grid: Grid) -> None:
        """Tell the nodes that did not say that they work for another run that this one waits."""
        task = ConfigRecord({"run-key": self.run_key, "release": True})
        nodes = self.busy.free(grid, sorted(grid.get_node_ids()))
        own = [node for node in nodes if self.roster.name(node) not in self.others.nodes]
        messages = [Message(RecordDict({"task": task}), node, "query.free") for node in own]
        for _ in exchange(grid, messages, RELEASE_SECONDS):
            pass

    def spool_to(self, folder: Path) -> None:
        """Let replies that do not fit in memory wait in this folder."""
        self.spool.folder = folder

    # -- checkpoints ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return what the server needs to go on after this round."""
        counters = Counters(
            self.num_folded,
            self._unevaluated,
            dict(self._last_replies),
            dict(self.roster.clients),
            self.placements.book() if self.placements is not None else {},
            dict(self.roster.sizes),
            self.roster.rests.dump(),
            dict(self.roster.tests),
        )
        return Snapshot(
            *(self.rounds_done, self.run_key, self.state, self.broadcast, counters),
            self.step_state or {},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on after a snapshot: call it before :meth:`start`, and give that its state."""
        counters = snapshot.counters
        self.rounds_done, self.num_folded = snapshot.server_round, counters.num_folded
        self.run_key, self.broadcast = snapshot.run_key, snapshot.broadcast
        self.step_state = snapshot.step_state or None
        self._unevaluated = counters.unevaluated
        self._last_replies = dict(counters.last_replies)
        self.roster.clients = counters.roster
        self.roster.sizes = dict(counters.sizes)
        self.roster.tests = dict(counters.tests)
        self.roster.rests.load(counters.rests)
        if self.placements is not None:
            self.placements.restore(counters.holding)

    # -- messages out --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask a share of the connected nodes, at least ``min_clients``, to train."""
        limits = self.limits
        self.roster.question = self.question(server_round)
        nodes = wait_for_nodes(
            grid, limits.min_clients, limits.wait_for_clients, self.busy, self.connected
        )
        nodes = self.draw(grid, nodes, server_round)
        self.report = RoundReport(server_round, num_asked=len(nodes))
        self._seconds.clear()
        if (placements := self.placements) is not None:
            question = self._content(server_round, placed_arrays(arrays, None), config)
            nodes = self._ask_to_choose(grid, placements, nodes, question)
        self.expect(nodes)
        content = self._content(server_round, arrays, config)
        messages, sizes = self._address(content, nodes, MessageType.TRAIN, server_round)
        self.report.bytes_down_by_node = sizes
        self.report.bytes_down += sum(sizes.values())
        self.progress.round_started(server_round, len(nodes))
        return messages

    def draw(self, grid: Grid, nodes: list[int], server_round: int) -> list[int]:
        """Draw the nodes of a round among those that are connected."""
        limits = self.limits
        size = sample_size(
            len(nodes), limits.fraction_train, limits.min_clients, limits.clients_per_round
        )
        awake = self.roster.awake(grid, nodes, server_round, limits.min_clients)
        return self.roster.draw(grid, awake, server_round, min(size, len(awake)))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all connected nodes to score the global model on their own test examples.

        Those that still train are left out.
        """
        nodes = self.busy.free(grid, self.connected(grid))
        if (placements := self.placements) is not None:
            # A node that has not trained yet would score a model without experts.
            nodes = [node for node in nodes if placements.of(self.roster, node)]
        content = self._content(server_round, arrays, config)
        messages, sizes = self._address(content, nodes, MessageType.EVALUATE, server_round)
        self.report.bytes_down += sum(sizes.values())
        return messages

    def _ask_to_choose(
        self,
        grid: Grid,
        placements: Placements,
        nodes: Sequence[int],
        content: RecordDict,
    ) -> list[int]:
        """Ask the nodes that have not told which experts they hold; return those that have."""
        unknown = [node for node in nodes if placements.of(self.roster, node) is None]
        self.report.bytes_down += record_bytes(content) * len(unknown)
        for reply, why in placements.ask(grid, unknown, content, self.roster):
            if reply.message is not None and reply.message.has_content():
                self.report.bytes_up_total += record_bytes(reply.message.content)
            if why is not None:
                self._fail_node(reply, reason=why)
            self._note_missed(reply, placements.timeout)
        return [node for node in nodes if placements.of(self.roster, node) is not None]

    def _address(
        self, content: RecordDict, nodes: Sequence[int], kind: str, server_round: int
    ) -> tuple[list[Message], dict[int, int]]:
        """Return one message a node, with what it holds and lacks of the state, and their sizes."""
        group = str(server_round)
        if self.placements is None:
            return self.downloads.address(content, nodes, kind, group)
        messages: list[Message] = []
        sizes: dict[int, int] = {}
        for node in nodes:
            own = self.placements.content_for(self.roster, node, content)
            message, size = self.downloads.address(own, [node], kind, group)
            messages, sizes = messages + message, sizes | size
        return messages, sizes

    def prepare(self, grid: Grid, arrays: ArrayRecord, timeout: float) -> ArrayRecord:
        """Let the steps before the run move the initial model."""
        return self.measure(grid, self.plan.server.before, arrays, timeout)

    def conclude(self, grid: Grid, arrays: ArrayRecord, timeout: float) -> ArrayRecord:
        """Let the steps after the run move the model; where that fails it stays as it was."""
        try:
            return self.measure(grid, self.plan.server.after, arrays, timeout)
        except RunFailedError as error:
            self._fail("after the run", str(error))
            return arrays

    def measure(
        self, grid: Grid, steps: Sequence[Step], arrays: ArrayRecord, timeout: float
    ) -> ArrayRecord:
        """Ask all connected nodes for what steps around the run hold; return the moved state.

        Raises:
            RunFailedError: fewer than ``min_clients`` replies can be used.
        """
        if not steps:
            return arrays
        limits, server_round = self.limits, max(0, self.rounds_done)
        self.roster.question = question = self.question(server_round)
        nodes = wait_for_nodes(
            grid, limits.min_clients, limits.wait_for_clients, self.busy, self.connected
        )
        content = self._content(server_round, arrays, ConfigRecord())
        self.report.bytes_down += record_bytes(content) * len(nodes)
        messages = [Message(content, node, QUERY) for node in nodes]
        self.progress.say(f"{len(nodes)} clients measure the model without training")
        replies = self._collect(grid, messages, timeout, " (measuring)")
        wanted = [part for step in steps for part in self.plan.measured_for(step)]
        answers = decode_measured(replies, self.roster, question, specs_of(wanted, self.state))
        self._name_failures()
        for who, why in answers.rejected.items():
            self._fail(f"{who} (measuring)", why)
        if len(answers.by_client) < limits.min_clients:
            raise RunFailedError(
                f"{len(answers.by_client)} usable replies of {len(nodes)} clients that were to "
                f"measure the model, min-clients = {limits.min_clients}: {self._reasons()}"
            )
        state = moved(self.state, steps, list(answers.by_client.values()), server_round)
        arrays = encode_state(state)
        self.state = view_state(arrays)
        self._unevaluated = True
        return arrays

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Reply]:
        """Send messages and yield a reply for each; a node that lost its state is asked again."""
        return self.downloads.exchange(grid, messages, timeout)

    def _count_resend(self, size: int) -> None:
        self.report.bytes_down += size

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        return encode_task(
            arrays,
            server_round,
            self.label_names,
            self.data_fingerprint,
            self.broadcast,
            config,
            self.run_key,
            self.base_fingerprint,
            self.offer,
            self.num_folded,
        )

    # -- replies in ----------------------------------------------------------------------------

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validate the replies and fold the good ones in client order.

        Returns None, None, and leaves the global state as it was, if fewer than ``min_clients``
        replies can be used.
        """
        self.spool.clear()
        intake = self._intake(self._asked, self.question(server_round))
        for message in replies:
            self.take(intake, message)
            del message  # before the next one is pulled
        return self.finish_train(server_round, intake.finish())

    def take(
        self,
        intake: Intake,
        message: Message,
        staleness: int | None = None,
        question: Question | None = None,
    ) -> None:
        """Put a training reply into an intake and tell of it; arguments of :meth:`Intake.add`."""
        node = message.metadata.src_node_id
        update = intake.add(message, node, staleness, question)
        if update is not None:
            self._note_update(update)
        else:
            self._to_ask.add(node)

    def expect(self, nodes: Iterable[int]) -> None:
        """Note which nodes were asked for the replies of the next :meth:`aggregate_train`."""
        self._asked = tuple(nodes)

    def _intake(self, asked: Sequence[int], question: Question) -> Intake:
        """Return what takes the replies of a round, summing at once what can be."""
        holders = self.roster.holders(asked)
        self._begin_sums()
        at_once, split = None, self._num_partitions
        # A node whose client is not known may be any; placements are checked at the end.
        if len(holders) == len(asked) and self.placements is None:
            at_once = AtOnce(self._sums, holders, split, self.spool)
        return Intake(
            *(self.update_spec(), self.roster, self.spool, holders, split, at_once),
            question=question,
            bounds=self.bounds,
        )

    def _begin_sums(self) -> None:
        self._buffers = ArrayBuffers()
        experts = not self.diagnose
        self._sums = RunningSums(self.plan.server, experts, self.state, self._buffers.zeros)

    def update_spec(self) -> UpdateSpec:
        """Return what a reply to the present state may hold."""
        top_k = 0 if self.placements is None else self.shape.top_k
        spec = UpdateSpec.of(self.state, self.region_size, self.offer.codecs, top_k)
        return replace(spec, statistics=specs_of(self.plan.measured, self.state))

    def finish_train(
        self, server_round: int, decoded: Decoded
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold what came of a round's replies; returns what :meth:`aggregate_train` does."""
        if self.placements is not None:
            decoded.updates, strange = self.placements.accept(decoded.updates)
            decoded.rejected |= strange
            decoded.kinds["client"] += len(strange)
        for who, why in decoded.rejected.items():
            self._fail(who, why)
        self._name_failures()
        named = {self.roster.name(node): seconds for node, seconds in self._seconds.items()}
        self.report.round_trips |= named
        self._seconds.clear()
        self.report.rejected = dict(decoded.kinds)
        updates = decoded.updates
        self.roster.sizes |= {update.client: update.num_examples for update in updates}
        self.roster.tests |= {u.client: int(u.metrics.get(NUM_TEST_ITEMS, 0)) for u in updates}
        good = [f"client {update.client}" for update in updates]
        too_few = len(updates) < self.limits.min_clients
        # Who works for another run is waited for, and has not failed.
        waited_for = self.others.nodes if too_few else {}
        failed = [who for who in self.report.failures if who not in waited_for]
        self.roster.rests.note(server_round, failed, good)
        self._note_lost_state(server_round, updates)
        if too_few:
            self._fail(
                "round",
                f"{len(updates)} usable replies of {self.report.num_asked} clients asked, "
                f"min-clients = {self.limits.min_clients}; the global model stays as it was",
            )
            return None, None
        arrays = self._fold(server_round, updates)
        if arrays is None:
            return None, None
        self.report.bytes_up = decoded.bytes_up
        known = [update.num_partitions for update in updates if update.num_partitions]
        self._num_partitions = known[0] if known else self._num_partitions
        return arrays, _mean_metrics(updates)

    def _fold(self, server_round: int, updates: Sequence[ClientUpdate]) -> ArrayRecord | None:
        """Fold the updates into the global state, or say why it stays as it was."""
        info = round_info(server_round, updates)
        layers, experts = info.routing[0].count.shape
        diagnostics = Diagnostics(layers, experts) if self.diagnose else None
        try:
            outcome = aggregate(
                *(self.state, updates, self.plan, info, self.step_state),
                sums=self._sums,
                pairs=self.pairs,
                diagnostics=diagnostics,
            )
            arrays = encode_one_by_one(outcome.tensors, self._buffers)
        except FoldError as error:
            self._fail("round", f"{error} ({self.scheme}); the global model stays as it was")
            return None
        self.state = view_state(arrays)
        if diagnostics is not None:
            self.report.diagnostics = diagnostics.result(self.plan.server, info)
        self.broadcast, self.step_state = flat_signals(outcome.told), outcome.state
        # The report outlives the round; the changes do not.
        self.report.updates = [replace(u, changes=ModelState(), statistics={}) for u in updates]
        self.report.folded = True
        self.report.bytes_down_to = self.roster.by_client(self.report.bytes_down_by_node)
        return arrays

    def _note_lost_state(self, server_round: int, updates: Sequence[ClientUpdate]) -> None:
        """Tell which clients should have kept something of an earlier round and have not."""
        for update in updates:
            expected = self._last_replies.get(update.client, 0)
            found = int(update.metrics.get("kept-round", 0))
            if self.plan.keeps_state and found < expected:
                self.report.lost_state.append(update.client)
                start = f"what it kept of round {found}" if found else "the global model"
                self.progress.say(
                    f"client {update.client}: what it kept of round {expected} is lost; "
                    f"it started from {start}"
                )
            self._last_replies[update.client] = update.server_round

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the clients' scores; None if nobody has test examples."""
        question = self.question(server_round)
        scores, rejected = decode_scores(replies, self.roster, question, self.bounds)
        self._name_failures()
        for who, why in rejected.items():
            self._fail(f"{who} (evaluation)", why)
        items = sum(score.items for score in scores)
        if not items:
            return None
        loss = sum(score.loss for score in scores) / items
        correct = sum(score.correct for score in scores)
        return MetricRecord({"loss": loss, "accuracy": correct / items, "items": items})


def _mean_metrics(updates: Sequence[ClientUpdate]) -> MetricRecord:
    """Average the clients' training losses by examples."""
    total = sum(update.num_examples for update in updates)
    loss = sum(update.metrics["train-loss"] * update.num_examples for update in updates) / total
    return MetricRecord({"train-loss": loss, "num-examples": total, "num-clients": len(updates)})
