"""Runs of the hostile app in process: nodes that come and go, and what is left of their lies."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from fedmoe_app import FedAvg, ModelShape
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.progress import Progress
from fedmoe_app.server.buffered import Buffered
from fedmoe_app.server.client_list import ClientList
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.records import decode_state, encode_state
from tests.conftest import make_config
from tests.end_to_end.hostile_app.hostile_app.client_app import app
from tests.end_to_end.hostile_app.hostile_app.server_app import small_state

FIRST = 1000  # node id of the first node
MOST_LOG = 6000  # characters that a round of three nodes may leave in the log


class Nodes(InProcessGrid):
    """Nodes of the hostile app; some are away, some silent.

    Attributes:
        away: nodes that are not connected.
        silent: nodes that do not answer.
        keys: public key in PEM by node.
        asked: node and kind of every message.
    """

    def __init__(self, configs: Iterable[dict[str, Any]]) -> None:
        super().__init__(app, {}, configs)
        self.away: set[int] = set()
        self.silent: set[int] = set()
        self.keys: dict[int, bytes] = {}
        self.asked: list[tuple[int, str]] = []

    def get_node_ids(self) -> list[int]:
        return [node for node in self._contexts if node not in self.away]

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=node, public_key=self.keys.get(node, b""))
            for node in self.get_node_ids()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += [(m.metadata.dst_node_id, m.metadata.message_type) for m in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [
            i
            for i in message_ids
            if i in self._waiting and self._waiting[i].metadata.dst_node_id not in self.silent
        ]
        return super().pull_messages(ready)


class Trial(Callback):
    """A run with hostile nodes.

    Args:
        folder: for what nodes remember.
        nodes: a node config each; ``partition-id`` and what the hostile app's page says.
        before: called with the number of each round before it begins, to change who is there.
        limits: of the strategy.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Iterable[dict[str, Any]],
        before: Callable[[int, Nodes], None] = lambda server_round, nodes: None,
        client_list: ClientList | None = None,
        buffer_size: int = 0,
        longest_cooldown: int = 0,
        **limits: Any,
    ) -> None:
        configs = [node | ({"memory": str(folder)} if "script" in node else {}) for node in nodes]
        self.nodes = Nodes(configs)
        self.before = before
        self.reports: list[RoundRecord] = []
        defaults = {"min_clients": 1, "wait_for_clients": 0, "max_failed_rounds": 99}
        config = make_config()
        bounds = TaskBounds(
            config.train, config.data.max_length, 1, config.data.local_test_fraction
        )
        self.strategy = MoEStrategy(
            FedAvg(),
            Limits(**defaults | limits),
            ClientTask(ModelShape(1, 2, 1), bounds=bounds),
            ClientRegistry(longest_cooldown=longest_cooldown, client_list=client_list),
        )
        self.loop = RoundLoop(self.strategy, Buffered(buffer_size) if buffer_size else None)
        self.progress = Progress()

    def run(self, rounds: int, timeout: float = 5) -> Trial:
        self.before(self.loop.rounds_done + 1 or 1, self.nodes)
        arrays = encode_state(self.strategy.state if self.loop.rounds_done >= 0 else small_state())
        with task_identity():
            self.loop.run(self.nodes, arrays, rounds, timeout, callbacks=[self.progress, self])
        return self

    def on_round(self, record: RoundRecord) -> None:
        self.reports.append(record)
        self.before(record.server_round + 1, self.nodes)

    def folded(self) -> list[list[int]]:
        """The clients whose replies were used, by round from 1."""
        return [[u.client for u in report.updates] for report in self.reports[1:]]

    def failures(self, server_round: int) -> dict[str, str]:
        found = self.reports[server_round].failures
        return {who: why for who, why in found.items() if who != "round"}

    def head(self) -> float:
        return float(decode_state(self.loop.arrays).dense["head"])

    def lines(self) -> list[str]:
        return [json.dumps(report.line) for report in self.reports]


def assert_little_and_printable(trial: Trial, records: Iterable[logging.LogRecord]) -> None:
    """What is left in log and metrics is short, of one line each, and nothing paints a terminal."""
    texts = []
    for record in records:
        event = getattr(record, "event", None)
        texts += [record.getMessage(), getattr(event, "who", ""), getattr(event, "reason", "")]
        texts += getattr(event, "metrics", {})
    assert sum(map(len, texts)) < MOST_LOG * len(trial.reports)
    assert all(text.isprintable() for text in texts), [t for t in texts if not t.isprintable()]
    lines = trial.lines()
    assert max(map(len, lines)) < MOST_LOG
    reasons = [why for report in trial.reports for why in report.failures.values()]
    assert all(reason.isprintable() and len(reason) <= 1000 for reason in reasons)
