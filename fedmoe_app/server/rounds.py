"""The loop over rounds. A round is four steps: :meth:`RoundLoop.run_round`."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fedmoe_app.results.callbacks import Callback
from fedmoe_app.schemes.base import Run
from fedmoe_app.schemes.parts import Step
from fedmoe_app.server.checkpoint import Counters, Snapshot
from fedmoe_app.server.collect import Collect, WaitForAll
from fedmoe_app.server.other_runs import OtherRuns
from fedmoe_app.server.round import EVALUATION, Round
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.validation import EvaluateFn, Validation
from fedmoe_app.wire.arrays import view_state
from fedmoe_app.wire.records import encode_tensors


class RunFailedError(RuntimeError):
    """Too many rounds in a row brought no usable update."""


class RoundLoop:
    """Runs the rounds of a strategy.

    Args:
        strategy: what is sent, and how replies are aggregated.
        collect: when a round is complete.
        validation: how the global model is scored to choose the best round; None where the last
            one is kept.

    Raises:
        ConfigError: if the scheme cannot be run so.

    Attributes:
        arrays: the last good global state, also when the run fails.
        reported: what is evaluated and saved in its place; None is the global state itself.
        rounds_done: -1 until the initial model, which counts as round 0, is reported.
    """

    def __init__(
        self,
        strategy: MoEStrategy,
        collect: Collect | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.strategy, self.validation = strategy, validation
        self.collect = collect or WaitForAll()
        strategy.plan.check(Run(strategy.task.shape, buffered=self.collect.is_buffered))
        self.arrays = ArrayRecord()
        self.reported: ArrayRecord | None = None
        self.rounds_done = -1
        self._failed_in_a_row = 0  # the last rounds, as many as failed
        self._unevaluated = False  # the global state changed since the last evaluation
        self._others = OtherRuns(
            strategy.limits.wait_for_other_runs, strategy.registry, strategy.busy
        )
        self._callbacks: Sequence[Callback] = ()
        self._why = ""  # clients failed in the last round

    def run(
        self,
        grid: Grid,
        arrays: ArrayRecord,
        num_rounds: int,
        timeout: float = 3600,
        evaluate_fn: EvaluateFn | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> ArrayRecord:
        """Run the rounds and return the last good global state.

        A run that was restored from a checkpoint goes on after ``rounds_done``; ``arrays`` are then
        the checkpoint's.

        Args:
            grid: the connection to the nodes.
            arrays: the initial global state.
            num_rounds: in all.
            timeout: seconds that a round waits for replies.
            evaluate_fn: scores a global state on the server; None lets the clients do it.
            callbacks: are told how the rounds go on.

        Raises:
            NotEnoughClientsError: if too few nodes are connected at the start of a round.
            RunFailedError: if ``max_failed_rounds`` rounds in a row failed, or all rounds did.
        """
        self.arrays, self._callbacks = arrays, callbacks
        self.strategy.state = view_state(arrays)
        self._failed_in_a_row = 0
        if self.rounds_done < 0:
            self._report_initial_model(self.begin_round(0, grid, timeout), evaluate_fn)
        for number in range(self.rounds_done + 1, num_rounds + 1):
            is_last = number == num_rounds
            is_due = number % self.strategy.limits.evaluate_every == 0 or is_last
            self.run_round(self.begin_round(number, grid, timeout), is_due, evaluate_fn, is_last)
            if self._failed_in_a_row >= self.strategy.limits.max_failed_rounds:
                raise RunFailedError(self._why_failed())
            if self.validation is not None and self.validation.is_over(number):
                break
        if not self.strategy.num_aggregated:
            raise RunFailedError(self._why_failed())
        return self.arrays

    def run_round(
        self,
        now: Round,
        is_due: bool,
        evaluate_fn: EvaluateFn | None = None,
        is_last: bool = False,
    ) -> None:
        """Run one round.

        Args:
            now: the round.
            is_due: whether the global model is evaluated if it has changed.
            evaluate_fn: scores it on the server.
            is_last: whether the scheme's steps after the run follow it.
        """
        while True:
            with now.timed("train"):
                # 1. Choose clients and ask them to train on the global state.
                self.collect.ask(self.strategy, now)
                # 2. Collect their replies: each is checked as it arrives.
                collected = self.collect.replies(self.strategy, now)
                # 3. Aggregate the good ones, in client order. Too few leave the state as it was.
                arrays = self.strategy.aggregate_train(now, collected)
                del collected  # the clients' changes: they are in the sums
            if arrays is not None or not self._wait_for_other_runs(now):
                break
            now.repeat()
        before = self.arrays
        if arrays is not None:
            self.arrays = now.arrays = arrays
            self._unevaluated = True
            self._others.round_done()
        server = self.strategy.plan.server
        refresh = server.refresh if arrays is not None else ()
        self._measure(now, (*refresh, *(server.after if is_last else ())))
        if self.arrays is not before:
            self.reported = self.strategy.report(now) or self.reported
        now.reported = self.reported
        # 4. Evaluate the global model, and report.
        if self._unevaluated and is_due:
            with now.timed("evaluate"):
                self._evaluate(now, evaluate_fn)
                self._validate(now, evaluate_fn)
        self._failed_in_a_row = 0 if now.aggregated else self._failed_in_a_row + 1
        self._report(now)

    @property
    def result(self) -> ArrayRecord:
        """The model of the run so far: what is saved."""
        return self.arrays if self.reported is None else self.reported

    def check_end(self) -> None:
        """Call it when all rounds are done: a run whose last one failed is not complete.

        Raises:
            RunFailedError: if the last round failed.
        """
        if failed := self._failed_in_a_row:
            last = self.rounds_done
            which = f"round {last}" if failed == 1 else f"the {failed} rounds up to {last}"
            raise RunFailedError(
                f"{which} of {last} failed, so the model is that of round {last - failed}: "
                f"{self._why}"
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return what the server needs to go on after this round."""
        strategy, registry = self.strategy, self.strategy.registry
        counters = Counters(
            strategy.num_aggregated,
            self._unevaluated,
            dict(strategy.last_replies),
            # Who is there tells who was drawn.
            dict(registry.clients) if strategy.private is None else {},
            strategy.placements.book() if strategy.placements is not None else {},
            dict(registry.sizes),
            registry.cooldown.dump(),
            dict(registry.tests),
        )
        return Snapshot(
            *(self.rounds_done, strategy.run_key, strategy.state, strategy.broadcast, counters),
            strategy.step_state or {},
            strategy.guard.dump() if strategy.guard is not None else {},
            self.validation.best if self.validation is not None else None,
            reported={} if self.reported is None else dict(view_state(self.reported).named()),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on after a snapshot: call it before :meth:`run`, and give that its state."""
        strategy, registry = self.strategy, self.strategy.registry
        counters = snapshot.counters
        self.rounds_done = snapshot.server_round
        self._unevaluated = counters.unevaluated
        strategy.num_aggregated = counters.num_folded
        strategy.run_key, strategy.broadcast = snapshot.run_key, snapshot.broadcast
        strategy.step_state = snapshot.step_state or None
        if strategy.guard is not None:
            strategy.guard.load(snapshot.guard)
        self.reported = encode_tensors(snapshot.reported) if snapshot.reported else None
        if strategy.assignments is not None:
            strategy.assignments.restore(snapshot.step_state)
        strategy.last_replies = dict(counters.last_replies)
        registry.clients = counters.roster
        registry.sizes = dict(counters.sizes)
        registry.tests = dict(counters.tests)
        registry.cooldown.load(counters.rests)
        if strategy.placements is not None:
            strategy.placements.restore(counters.holding)
        if self.validation is not None:
            self.validation.restore(snapshot.best)

    # -- parts of a round ----------------------------------------------------------------------

    def begin_round(self, server_round: int, grid: Grid, timeout: float = 3600) -> Round:
        """Return a round that begins now, with the present global state."""
        self._others.begin_round()
        return Round(
            *(server_round, grid, self.arrays, timeout),
            *(self.strategy.registry, self._others, self._callbacks),
            None if (private := self.strategy.private) is None else private.expected,
            self.strategy.task.example_level,
        )

    def _measure(self, now: Round, steps: Sequence[Step]) -> bool:
        """Let steps for which nobody trains move the model; return whether they could."""
        if not steps:
            return True
        arrays = self.strategy.measure(now, steps)
        if arrays is not None:
            self.arrays = now.arrays = arrays
            self._unevaluated = True
        return arrays is not None

    def _report_initial_model(self, now: Round, evaluate_fn: EvaluateFn | None) -> None:
        if not self._measure(now, self.strategy.plan.server.before):
            raise RunFailedError(f"before the first round: {now.reasons()}")
        now.aggregated = True
        if evaluate_fn is not None:
            self._evaluate(now, evaluate_fn)
        self._report(now)

    def _evaluate(self, now: Round, evaluate_fn: EvaluateFn | None) -> None:
        """Score the global model on the server's test set, else on the clients' own."""
        if evaluate_fn is not None:
            now.evaluation = evaluate_fn(now.server_round, now.scored)
        elif self.strategy.private is None and self.strategy.sums is None:
            now.evaluation = self._score_by_clients(now)  # a score is of one client
        self._unevaluated = False

    def _score_by_clients(self, now: Round) -> MetricRecord | None:
        """Have the clients score the global model on their own test examples."""
        strategy = self.strategy
        nodes = self.collect.evaluators(strategy, now)
        messages = strategy.configure_evaluate(now, nodes)
        return strategy.aggregate_evaluate(now, strategy.exchange(now, messages, EVALUATION))

    def _validate(self, now: Round, evaluate_fn: EvaluateFn | None) -> None:
        """Score the global model on the rows that choose the best round."""
        if self.validation is None:
            return
        if self.validation.evaluate_fn is not None:
            now.validation = self.validation.evaluate_fn(now.server_round, now.scored)
        else:  # without a test set of the server's the clients have just done it
            now.validation = self._score_by_clients(now) if evaluate_fn else now.evaluation
        self.validation.note(now.server_round, now.validation)

    def _report(self, now: Round) -> None:
        if self.validation is not None:
            now.best = self.validation.line(now.server_round)
        record = now.record(self.strategy.task.metric)
        self.rounds_done = record.server_round
        self._why = now.reasons()
        for callback in self._callbacks:
            callback.on_round(record)

    def _wait_for_other_runs(self, now: Round) -> bool:
        """Wait where too many nodes work for another run; return whether to ask them again."""
        strategy = self.strategy
        return self._others.wait(
            now.grid, now.server_round, strategy.run_key, strategy.limits.min_clients
        )

    def _why_failed(self) -> str:
        limits = self.strategy.limits
        return (
            f"{self._failed_in_a_row} round(s) in a row failed (max-failed-rounds = "
            f"{limits.max_failed_rounds}, min-clients = {limits.min_clients}); "
            f"the last one: {self._why}"
        )
