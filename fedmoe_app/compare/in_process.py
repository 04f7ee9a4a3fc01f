"""Run the real ServerApp and the real ClientApps in one process: no Ray, no sockets.

For tests and for comparing schemes, where starting processes would cost more than training.
Messages go through the same encoding and validation as over the network.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmoe_app import client_app
from fedmoe_app.client.root import train_on_root
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.flower.process import RUN_ID, Run, empty_run, task_identity
from fedmoe_app.launch.preflight import check_model
from fedmoe_app.moe.quiet import quiet_transformers
from fedmoe_app.results.events import log_to_stdout
from fedmoe_app.server.run import run_server

_FIRST_NODE_ID = 1000
_CLIENT_RAISED = 2  # flwr.app.error code of a ClientApp that raised


class InProcessGrid(Grid):
    """A Grid that answers a message by calling the ClientApp when the reply is pulled.

    Args:
        app: the client app.
        run_config: the flat run config that every client sees.
        node_configs: one node config a client.
    """

    def __init__(
        self,
        app: ClientApp,
        run_config: Mapping[str, Any],
        node_configs: Iterable[Mapping[str, Any]],
    ) -> None:
        self._app = app
        self._run = empty_run()
        self._waiting: dict[str, Message] = {}
        self._contexts = {
            node_id: Context(RUN_ID, node_id, dict(node_config), RecordDict(), dict(run_config))
            for node_id, node_config in enumerate(node_configs, start=_FIRST_NODE_ID)
        }

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's other grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all clients."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; each is answered when its reply is pulled."""
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self._waiting[message.metadata.message_id] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer one of these messages, so that replies come one by one as from real nodes."""
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._answer(self._waiting.pop(message_id))]
        return []

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # Flower's runtimes turn any exception into an error reply.
            return Message(Error(_CLIENT_RAISED, str(error)), reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull in one call."""
        ids = self.push_messages(list(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def run_in_process(
    run_config: Mapping[str, Any],
    num_clients: int,
    node_configs: Iterable[Mapping[str, Any]] | None = None,
) -> Path:
    """Run a whole federated fine-tuning in this process and return its result folder.

    Args:
        run_config: flat run config, complete.
        num_clients: simulated clients, each with one partition.
        node_configs: one node config a client, instead of plain partitions.
    """
    configs = node_configs or (
        {"partition-id": i, "num-partitions": num_clients} for i in range(num_clients)
    )
    config = parse_run_config(run_config)
    log_to_stdout()
    check_model(config)
    with task_identity(), quiet_transformers():
        return run_server(InProcessGrid(client_app.app, run_config, configs), config, train_on_root)
