"""The loop over rounds: ask, collect, fold, evaluate, report; the strategy fills in the steps.

Flower's own loop waits for ever for missing nodes, polls slowly and lets a round in which all
clients failed pass as one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.metrics import RoundReport
from fedmoe_app.results.progress import Progress
from fedmoe_app.server.busy import BusyNodes, OtherRuns
from fedmoe_app.server.client_list import ClientList
from fedmoe_app.server.clients import Roster
from fedmoe_app.server.transport import Reply, exchange
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.text import visible
from fedmoe_app.wire.arrays import view_state
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import record_bytes
from fedmoe_app.wire.update import ClientUpdate

MAX_REASON = 1000  # characters of a failure's reason that are kept
_NAMED = re.compile(r"client (\d+): (.*)")  # how a client's own errors begin
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class RunFailedError(RuntimeError):
    """Too many rounds in a row brought no usable update."""


@dataclass(frozen=True)
class Limits:
    """How many clients a round needs, how long to wait for them, how often to evaluate."""

    min_clients: int = 2
    fraction_train: float = 1.0
    wait_for_clients: float = 120.0
    max_failed_rounds: int = 2
    evaluate_every: int = 1
    clients_per_round: int = 0  # 0: fraction_train
    sampling: str = "uniform"  # or "examples"
    max_rest: int = 0  # rounds that a client is left out after failures, at most
    buffer_size: int = 0  # replies that make a buffered round; 0: rounds wait for all
    wait_for_other_runs: float = 3600.0  # seconds, for nodes that work for another run


class RoundLoop(Strategy):
    """Runs the rounds of a strategy, which says what is sent and how replies are folded.

    Args:
        limits: numbers of clients and waiting times.
        seed: fixes which clients are drawn in a round.
        on_round: called with the report of every round, 0 (the initial model) included.
        client_list: who may speak for which client; None leaves it to who comes first.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        seed: int = 0,
        on_round: Callable[[RoundReport], None] = lambda report: None,
        client_list: ClientList | None = None,
    ) -> None:
        self.limits = limits
        self.on_round = on_round
        self.progress = Progress()
        self.state = ModelState()
        self.roster = Roster(seed, limits.sampling, limits.max_rest, client_list)
        self.run_key = ""
        self.report = RoundReport(0)
        self.busy = BusyNodes(self._late_reply)
        self.others = OtherRuns(limits.wait_for_other_runs)
        self.result = Result()  # of the run so far, also when it fails
        self.rounds_done = -1  # the initial model, which is reported first, counts as round 0
        self.num_folded = 0
        self.failed_in_a_row = 0  # the last rounds, as many as failed
        self._unevaluated = False  # the global state changed since the last evaluation
        # Failures of nodes whose client is not known yet: node, phase, reason.
        self._nameless: list[tuple[int, str, str]] = []
        self._to_ask: set[int] = set()  # nodes that would tell it
        self._seconds: dict[int, float] = {}  # node -> from asking to its training reply
        self._told: set[int] = set()  # nodes of which was said that they are not listed

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds and return the last good arrays with the metrics of every round.

        A run that was restored from a checkpoint goes on after ``rounds_done``; ``initial_arrays``
        are then the checkpoint's.

        Raises:
            NotEnoughClientsError: if too few nodes are connected at the start of a round.
            RunFailedError: if ``max_failed_rounds`` rounds in a row failed, or all rounds did.
        """
        self.result = Result()
        self.result.arrays = initial_arrays
        self.state = view_state(initial_arrays)
        self.progress.start(num_rounds)
        if self.rounds_done < 0:
            self._report_initial_model(grid, timeout, evaluate_fn)
        self.failed_in_a_row = 0
        for server_round in range(self.rounds_done + 1, num_rounds + 1):
            started = time.monotonic()
            self._train_when_free(grid, server_round, timeout, train_config)
            if server_round == num_rounds:
                self.result.arrays = self.conclude(grid, self.result.arrays, timeout)
            is_due = server_round % self.limits.evaluate_every == 0 or server_round == num_rounds
            if self._unevaluated and is_due:
                self._evaluate_round(grid, timeout, evaluate_config, evaluate_fn)
            self._finish_round(started)
            self.failed_in_a_row = 0 if self.report.folded else self.failed_in_a_row + 1
            if self.failed_in_a_row >= self.limits.max_failed_rounds:
                raise RunFailedError(self._why_failed(self.failed_in_a_row))
        if not self.num_folded:
            raise RunFailedError(self._why_failed(self.failed_in_a_row))
        return self.result

    def check_end(self) -> None:
        """Call it when all rounds are done: a run whose last one failed is not complete.

        Raises:
            RunFailedError: if the last round failed.
        """
        if self.failed_in_a_row:
            raise RunFailedError(self._why_last_failed(self.rounds_done, self.failed_in_a_row))

    def _report_initial_model(
        self, grid: Grid, timeout: float, evaluate_fn: EvaluateFn | None
    ) -> None:
        started = time.monotonic()
        self.report = RoundReport(0, folded=True)
        self.result.arrays = self.prepare(grid, self.result.arrays, timeout)
        if evaluate_fn is not None:
            self._note_evaluation(evaluate_fn(0, self.result.arrays))
        self._finish_round(started)

    def _train_when_free(
        self, grid: Grid, server_round: int, timeout: float, config: ConfigRecord | None
    ) -> None:
        """Train a round; where too many nodes work for another run, wait and ask again."""
        self.others.begin_round()
        self._train_round(grid, server_round, timeout, config)
        while not self.report.folded and (pause := self.others.next_pause()) is not None:
            self._wait_for_others(grid, server_round, pause)
            self.others.begin_round()
            sent = self.report.bytes_up_total, self.report.bytes_down
            self._train_round(grid, server_round, timeout, config)
            self.report.bytes_up_total += sent[0]
            self.report.bytes_down += sent[1]
        if self.report.folded:
            self.others.round_done()

    def _wait_for_others(self, grid: Grid, server_round: int, pause: float | None) -> None:
        """Wait until enough nodes say that they are free, or it has been waited long enough."""
        while pause is not None:
            # Two runs that each held some of the nodes would wait for each other.
            self.release_nodes(grid)
            self._tell_of_others(server_round, pause)
            time.sleep(pause)
            if self.free_nodes(grid, self.others.left) >= self.limits.min_clients:
                return
            pause = self.others.next_pause()

    def _tell_of_others(self, server_round: int, pause: float) -> None:
        names, reasons = ", ".join(sorted(self.others.nodes)), self.others.nodes.values()
        self.progress.say(
            f"round {server_round} waits: {names}: {next(iter(reasons), '')}; asked again in "
            f"{duration(pause)}, for {duration(self.others.left)} at most (wait-for-other-runs)",
            "waiting",
            round=server_round,
            nodes=dict(self.others.nodes),
        )

    def prepare(self, grid: Grid, arrays: ArrayRecord, timeout: float) -> ArrayRecord:
        """Return the global state that the run begins with; call it before the first round."""
        return arrays

    def conclude(self, grid: Grid, arrays: ArrayRecord, timeout: float) -> ArrayRecord:
        """Return the global state that the run ends with; call it after the last round."""
        return arrays

    def free_nodes(self, grid: Grid, seconds: float) -> int:
        """Return how many nodes may be asked; all of them, unless they say something else."""
        return len(list(grid.get_node_ids()))

    def release_nodes(self, grid: Grid) -> None:
        """Let the nodes that do work for this run work for another one meanwhile."""

    def _train_round(
        self, grid: Grid, server_round: int, timeout: float, config: ConfigRecord | None
    ) -> None:
        """Ask, collect and fold; a failed round leaves the arrays as they were."""
        started = time.monotonic()
        messages = list(
            self.configure_train(server_round, self.result.arrays, config or ConfigRecord(), grid)
        )
        replies = self._collect(grid, messages, timeout)
        arrays, metrics = self.aggregate_train(server_round, replies)
        if arrays is not None and metrics is not None:
            self._adopt(server_round, arrays, metrics)
        self.report.seconds["train"] = time.monotonic() - started

    def _adopt(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
        """Take what a round was folded into as the global state."""
        self.result.arrays = arrays
        self.result.train_metrics_clientapp[server_round] = metrics
        self.num_folded += 1
        self._unevaluated = True

    def _evaluate_round(
        self,
        grid: Grid,
        timeout: float,
        config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
    ) -> None:
        """Score the global model on the server's test set, else on the clients' own."""
        started, server_round = time.monotonic(), self.report.server_round
        arrays = self.result.arrays
        if evaluate_fn is not None:
            evaluation = evaluate_fn(server_round, arrays)
        else:
            messages = self.configure_evaluate(server_round, arrays, config or ConfigRecord(), grid)
            replies = self._collect(grid, list(messages), timeout, " (evaluation)")
            evaluation = self.aggregate_evaluate(server_round, replies)
        self._note_evaluation(evaluation)
        self.report.seconds["evaluate"] = time.monotonic() - started

    def _note_evaluation(self, evaluation: MetricRecord | None) -> None:
        self.report.evaluation = evaluation
        self._unevaluated = False
        if evaluation is not None:
            self.result.evaluate_metrics_serverapp[self.report.server_round] = evaluation

    def _finish_round(self, started: float) -> None:
        self.report.seconds["round"] = time.monotonic() - started
        self.rounds_done = self.report.server_round
        self.progress.round_done(self.report)
        self.on_round(self.report)

    def _why_failed(self, rounds: int) -> str:
        return (
            f"{rounds} round(s) in a row failed (max-failed-rounds = "
            f"{self.limits.max_failed_rounds}, min-clients = {self.limits.min_clients}); "
            f"the last one: {self._reasons()}"
        )

    def _why_last_failed(self, num_rounds: int, failed: int) -> str:
        which = f"round {num_rounds}" if failed == 1 else f"the {failed} rounds up to {num_rounds}"
        return (
            f"{which} of {num_rounds} failed, so the model is that of round "
            f"{num_rounds - failed}: {self._reasons()}"
        )

    def _reasons(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for who, why in self.report.failures.items():
            by_reason.setdefault(why, []).append(who)
        reasons = "; ".join(f"{', '.join(who)}: {why}" for why, who in by_reason.items())
        return reasons or "no reasons given"

    def question(self, server_round: int) -> Question:
        """Return what a message of this round with the present state asks about."""
        return Question(server_round, self.run_key, self.num_folded)

    def connected(self, grid: Grid) -> list[int]:
        """Return the connected nodes that may take part, sorted by id."""
        nodes = self.roster.connected(grid)
        for node in sorted(self.roster.unlisted - self._told):
            self._told.add(node)
            self.progress.say(f"node {node} is not in the client list; it is not asked")
        return nodes

    def _collect(
        self, grid: Grid, messages: list[Message], timeout: float, phase: str = ""
    ) -> Iterator[Message]:
        """Pull the replies as they arrive, note failures, and yield those with content.

        Nothing of a reply is looked at here but its size. Nothing here holds a reply when the next
        one is pulled: it may be gigabytes.
        """
        for reply in self.exchange(grid, messages, timeout):
            self._note_missed(reply, timeout)
            if reply.failure is not None:
                self._fail_node(reply, phase)
            elif reply.message is not None:
                self._note_arrival(reply, phase)
                yield reply.message
            del reply
        self.roster.ask(grid, self._to_ask)
        self._to_ask.clear()

    def _note_arrival(self, reply: Reply, phase: str = "") -> None:
        assert reply.message is not None
        self.report.bytes_up_total += record_bytes(reply.message.content)
        if not phase:
            self._seconds[reply.node_id] = reply.seconds

    def _note_update(self, update: ClientUpdate) -> None:
        """Tell of a training reply that is good."""
        counts = {
            "client": update.client,
            "num-examples": update.num_examples,
            "num-partitions": update.num_partitions,
        }
        self.progress.reply(f"client {update.client}", counts | update.metrics)

    def _fail_node(self, reply: Reply, phase: str = "", reason: str | None = None) -> None:
        """Note a node's failure, under its client's name; that may have to be asked for first."""
        reason = reason or reply.failure or "no reason given"
        if self.roster.client(reply.node_id) is None and reply.is_own:
            self._to_ask.add(reply.node_id)
            self._nameless.append((reply.node_id, phase, reason))
        else:
            self._fail(self.roster.name(reply.node_id) + phase, self._plain(reply.node_id, reason))

    def _plain(self, node: int, reason: str) -> str:
        """Return a node's error without the name that it begins with, if that is the right one."""
        named = _NAMED.fullmatch(reason)
        return named[2] if named and self.roster.name(node) == f"client {named[1]}" else reason

    def _name_failures(self) -> None:
        """Note the failures that waited for their client's name, when claims are settled."""
        for node, phase, reason in self._nameless:
            self._fail(self.roster.name(node) + phase, self._plain(node, reason))
        self._nameless.clear()
        for node, reason in sorted(self.roster.refused.items()):
            if f"node {node}" not in self.report.failures:
                self._fail(f"node {node}", reason)
        self.roster.refused.clear()

    def exchange(self, grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Reply]:
        """Send messages and yield a reply for each."""
        return exchange(grid, messages, timeout)

    def _note_missed(self, reply: Reply, timeout: float) -> None:
        """Note whether the node still works on what it was asked."""
        if reply.message is None and reply.message_id:
            self.busy.missed(reply.message_id, reply.node_id, timeout)
        elif reply.failure is None:
            self.busy.answered(reply.node_id)

    def _late_reply(self, node_id: int, content: RecordDict) -> None:
        """Tell of a late reply; nothing is learnt from it."""
        who = self.roster.name(node_id)
        self.progress.say(f"{who}: late reply dropped; it is asked again", "late-reply", who=who)

    def _fail(self, who: str, reason: str) -> None:
        reason = visible(reason, MAX_REASON)
        self.others.note(who, reason)
        self.report.failures[who] = reason
        self.progress.failure(who, reason)
