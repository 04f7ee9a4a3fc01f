"""MoEStrategy: a Flower strategy that folds sparse expert updates as a scheme says.

It follows Flower's ``Strategy``: ``configure_train`` makes the messages of a round,
``aggregate_train`` validates and folds the replies. ``start`` is its own, because Flower's waits
for ever for missing nodes, polls slowly and lets a round in which all clients failed pass as one.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedmoe_app.exchange import exchange, wait_for_nodes
from fedmoe_app.moe.state import ModelState
from fedmoe_app.report.lines import RoundReport
from fedmoe_app.report.progress import Progress
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.fold import fold, round_info
from fedmoe_app.wire.records import (
    UpdateSpec,
    decode_client,
    decode_score,
    decode_state,
    decode_update,
    encode_state,
    encode_task,
    record_bytes,
)
from fedmoe_app.wire.update import ClientScore, ClientUpdate, InvalidUpdateError

_CLIENT_ERROR = re.compile(r"(client \d+): (.*)", re.DOTALL)
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


class MoEStrategy(Strategy):
    """Sparse federated averaging of MoE models; the scheme decides on weights and broadcasts.

    Args:
        scheme: the server's half of the aggregation scheme.
        limits: numbers of clients and waiting times.
        seed: fixes which clients are drawn in a round.
        label_names, data_fingerprint: sent to the clients, so that all agree on the data.
        on_round: called with the report of every round, 0 (the initial model) included.
    """

    def __init__(
        self,
        scheme: Scheme,
        limits: Limits,
        *,
        seed: int = 0,
        label_names: Sequence[str] = (),
        data_fingerprint: str = "",
        on_round: Callable[[RoundReport], None] = lambda report: None,
    ) -> None:
        self.scheme = scheme
        self.limits = limits
        self.seed = seed
        self.label_names = tuple(label_names)
        self.data_fingerprint = data_fingerprint
        self.on_round = on_round
        self.progress = Progress()
        self.state = ModelState()
        self.broadcast: dict[str, Tensor] = {}
        self.clients: dict[int, int] = {}  # node id -> client number, once known
        self.report = RoundReport(0)

    def summary(self) -> None:
        """Log the scheme and the limits."""
        self.progress.say(f"scheme: {self.scheme}")
        share = self.limits.fraction_train
        asked = "all connected clients" if share == 1 else f"{share:.0%} of the connected clients"
        self.progress.say(f"each round: {asked}, at least {self.limits.min_clients}")

    # -- the run -------------------------------------------------------------------------------

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

        Raises:
            NotEnoughClientsError: if too few nodes are connected at the start of a round.
            RunFailedError: if ``max_failed_rounds`` rounds in a row failed, or all rounds did.
        """
        result = Result()
        result.arrays = initial_arrays
        self.state = decode_state(initial_arrays)
        self.progress.start(num_rounds)
        self._report_initial_model(result, evaluate_fn)
        failed_in_a_row = 0
        for server_round in range(1, num_rounds + 1):
            started = time.monotonic()
            self._train_round(grid, server_round, timeout, train_config, result)
            is_due = server_round % self.limits.evaluate_every == 0 or server_round == num_rounds
            if self.report.folded and is_due:
                self._evaluate_round(grid, timeout, evaluate_config, evaluate_fn, result)
            self._finish_round(started)
            failed_in_a_row = 0 if self.report.folded else failed_in_a_row + 1
            if failed_in_a_row >= self.limits.max_failed_rounds:
                raise RunFailedError(self._why_failed(failed_in_a_row))
        if not result.train_metrics_clientapp:
            raise RunFailedError(self._why_failed(failed_in_a_row))
        return result

    def _report_initial_model(self, result: Result, evaluate_fn: EvaluateFn | None) -> None:
        started = time.monotonic()
        self.report = RoundReport(0, folded=True)
        if evaluate_fn is not None:
            self._note_evaluation(result, evaluate_fn(0, result.arrays))
        self._finish_round(started)

    def _train_round(
        self,
        grid: Grid,
        server_round: int,
        timeout: float,
        config: ConfigRecord | None,
        result: Result,
    ) -> None:
        """Ask, collect and fold; a failed round leaves ``result.arrays`` as they were."""
        started = time.monotonic()
        messages = list(
            self.configure_train(server_round, result.arrays, config or ConfigRecord(), grid)
        )
        replies = self._collect(grid, messages, timeout)
        arrays, metrics = self.aggregate_train(server_round, replies)
        if arrays is not None and metrics is not None:
            result.arrays = arrays
            result.train_metrics_clientapp[server_round] = metrics
        self.report.seconds["train"] = time.monotonic() - started

    def _evaluate_round(
        self,
        grid: Grid,
        timeout: float,
        config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
        result: Result,
    ) -> None:
        """Score the new global model on the server's test set, else on the clients' own."""
        started, server_round = time.monotonic(), self.report.server_round
        if evaluate_fn is not None:
            self._note_evaluation(result, evaluate_fn(server_round, result.arrays))
        else:
            asked = list(
                self.configure_evaluate(server_round, result.arrays, config or ConfigRecord(), grid)
            )
            replies = self._collect_scores(grid, asked, timeout)
            self._note_evaluation(result, self.aggregate_evaluate(server_round, replies))
        self.report.seconds["evaluate"] = time.monotonic() - started

    def _note_evaluation(self, result: Result, evaluation: MetricRecord | None) -> None:
        self.report.evaluation = evaluation
        if evaluation is not None:
            result.evaluate_metrics_serverapp[self.report.server_round] = evaluation

    def _finish_round(self, started: float) -> None:
        self.report.seconds["round"] = time.monotonic() - started
        self.progress.round_done(self.report)
        self.on_round(self.report)

    def _why_failed(self, rounds: int) -> str:
        by_reason: dict[str, list[str]] = {}
        for who, why in self.report.failures.items():
            by_reason.setdefault(why, []).append(who)
        reasons = "; ".join(f"{', '.join(who)}: {why}" for why, who in by_reason.items())
        return (
            f"{rounds} round(s) in a row failed (max-failed-rounds = "
            f"{self.limits.max_failed_rounds}, min-clients = {self.limits.min_clients}); "
            f"the last one: {reasons or 'no reasons given'}"
        )

    # -- messages out --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask a share of the connected nodes, at least ``min_clients``, to train."""
        nodes = wait_for_nodes(grid, self.limits.min_clients, self.limits.wait_for_clients)
        nodes = self._sample(grid, nodes, server_round)
        content = self._content(server_round, arrays, config)
        self.report = RoundReport(
            server_round, bytes_down=record_bytes(content), num_asked=len(nodes)
        )
        self.progress.round_started(server_round, len(nodes))
        return [Message(content, node, MessageType.TRAIN) for node in nodes]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all connected nodes to score the global model on their own test examples."""
        content = self._content(server_round, arrays, config)
        nodes = sorted(grid.get_node_ids())
        self.report.bytes_down += record_bytes(content)
        return [Message(content, node, MessageType.EVALUATE) for node in nodes]

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        return encode_task(
            arrays, server_round, self.label_names, self.data_fingerprint, self.broadcast, config
        )

    def _sample(self, grid: Grid, nodes: list[int], server_round: int) -> list[int]:
        """Draw the round's nodes by client number, which unlike node ids is the same every run."""
        size = max(self.limits.min_clients, math.ceil(self.limits.fraction_train * len(nodes)))
        if size >= len(nodes):
            return nodes
        self._ask_for_numbers(grid, [node for node in nodes if node not in self.clients])
        nodes = sorted(nodes, key=lambda node: (self.clients.get(node, math.inf), node))
        drawn = np.random.default_rng([self.seed, server_round]).permutation(len(nodes))[:size]
        return [nodes[i] for i in sorted(drawn)]

    def _ask_for_numbers(self, grid: Grid, nodes: list[int]) -> None:
        asked = [Message(RecordDict(), node, "query.describe") for node in nodes]
        for reply in exchange(grid, asked, self.limits.wait_for_clients):
            if reply.message is not None and reply.failure is None:
                with suppress(InvalidUpdateError):  # stays unknown, and is drawn last
                    self.clients[reply.node_id] = decode_client(reply.message.content)

    # -- replies in ----------------------------------------------------------------------------

    def _collect(self, grid: Grid, messages: list[Message], timeout: float) -> list[Message]:
        """Pull the replies as they arrive, note failures, and return those with content."""
        good: list[Message] = []
        for reply in exchange(grid, messages, timeout):
            if reply.failure is not None:
                self._fail(*self._who_and_why(reply.node_id, reply.failure))
            elif reply.message is not None:
                with suppress(InvalidUpdateError):  # rejected, with the reason, when it is decoded
                    self.clients[reply.node_id] = decode_client(reply.message.content)
                metrics = dict(reply.message.content.metric_records.get("metrics") or {})
                self.progress.reply(self.clients.get(reply.node_id), metrics, reply)
                good.append(reply.message)
        return good

    def _collect_scores(self, grid: Grid, messages: list[Message], timeout: float) -> list[Message]:
        good: list[Message] = []
        for reply in exchange(grid, messages, timeout):
            if reply.failure is not None:
                who, why = self._who_and_why(reply.node_id, reply.failure)
                self._fail(f"{who} (evaluation)", why)
            elif reply.message is not None:
                good.append(reply.message)
        return good

    def _who_and_why(self, node_id: int, reason: str) -> tuple[str, str]:
        """Name the client, which a client's own error message begins with, else the node."""
        if named := _CLIENT_ERROR.fullmatch(reason):
            return named[1], named[2]
        client = self.clients.get(node_id)
        return f"client {client}" if client is not None else f"node {node_id}", reason

    def _fail(self, who: str, reason: str) -> None:
        self.report.failures[who] = reason
        self.progress.failure(who, reason)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validate the replies and fold the good ones in client order.

        Returns None, None, and leaves the global state as it was, if fewer than ``min_clients``
        replies can be used.
        """
        updates = self._decode(replies)
        if len(updates) < self.limits.min_clients:
            self._fail(
                "round",
                f"{len(updates)} usable replies of {self.report.num_asked} clients asked, "
                f"min-clients = {self.limits.min_clients}; the global model stays as it was",
            )
            return None, None
        info = round_info(server_round, updates)
        self.state = fold(self.state, updates, self.scheme, info)
        self.broadcast = self.scheme.broadcast(info)
        self.report.updates, self.report.folded = updates, True
        return encode_state(self.state), _mean_metrics(updates)

    def _decode(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        spec, updates = UpdateSpec.of(self.state), dict[int, ClientUpdate]()
        for message in replies:
            who = f"node {message.metadata.src_node_id}"
            try:
                update = decode_update(message.content, spec)
                who = f"client {update.client}"
                if update.client in updates:
                    raise InvalidUpdateError("a second node has the same partition-id")
            except InvalidUpdateError as error:
                self._fail(who, f"reply rejected: {error}")
                continue
            updates[update.client] = update
            self.report.bytes_up[update.client] = record_bytes(message.content)
        return [updates[client] for client in sorted(updates)]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the clients' scores; None if nobody has test examples."""
        scores: dict[int, ClientScore] = {}
        for message in replies:
            try:
                score = decode_score(message.content)
            except InvalidUpdateError as error:
                self._fail(f"node {message.metadata.src_node_id}", f"score rejected: {error}")
                continue
            scores[score.client] = score
        # In client order, so that the float sum does not depend on who answered first.
        ordered = [scores[client] for client in sorted(scores)]
        items = sum(score.items for score in ordered)
        if not items:
            return None
        loss = sum(score.loss for score in ordered) / items
        correct = sum(score.correct for score in ordered)
        return MetricRecord({"loss": loss, "accuracy": correct / items, "items": items})


def _mean_metrics(updates: Sequence[ClientUpdate]) -> MetricRecord:
    """Average the clients' training losses by examples."""
    total = sum(update.num_examples for update in updates)
    loss = sum(update.metrics["train-loss"] * update.num_examples for update in updates) / total
    return MetricRecord({"train-loss": loss, "num-examples": total, "num-clients": len(updates)})
