"""Rounds of real local training and aggregation, without messages, folders and a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedmoe_app import Client, ModelState, Plan, Run, Scheme, Server, make_scheme, parse_run_config
from fedmoe_app.aggregation.aggregate import aggregate, reported
from fedmoe_app.aggregation.streaming import replies_of, round_info
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import flat_signals
from fedmoe_app.server.assigning import Assignments
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.conftest import flat_config
from tests.invariant.runs import COMMON

CLIENTS = 2


@dataclass(frozen=True)
class Drawn(Scheme):
    """Two halves that a test puts there; they cannot come from a run config."""

    halves: ClassVar[tuple[Client, Server]] = (Client(), Server())

    def client(self, model: ModelShape) -> Client:
        return self.halves[0]

    def server(self, model: ModelShape) -> Server:
        return self.halves[1]


DRAWN = f"{Drawn.__module__}:{Drawn.__name__}"


@dataclass(frozen=True)
class Played:
    """Values before and after, and those that are reported; by full name."""

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    reported: Mapping[str, Tensor]


def config_of(material: Path, base: str = "base", **overrides: Any) -> dict[str, Any]:
    """A flat run config over the material of the golden runs."""
    data = {
        "model.name": str(material / base),
        "data.source": str(material / "texts-train.jsonl"),
        "data.test-source": str(material / "texts-test.jsonl"),
    }
    return flat_config(**{**COMMON, **data, **overrides})


def play(flat: Mapping[str, Any], rounds: int = 1) -> Played:
    """Train two clients and aggregate; ``$FEDMOE_HOME`` must be a folder of the test's own.

    Raises:
        ConfigError, UnsupportedModelError: as before a run, with the reason.
    """
    torch.set_num_threads(1)
    config = parse_run_config(flat)
    data = server_data(config.data)
    scheme = make_scheme(config)
    setup = load_setup(config, data.label_names)
    plan = Plan.of(scheme, setup.shape)
    plan.check(Run(setup.shape, task=config.data.task))
    state = read_state(setup.model, setup.layers)
    before = {key: tensor.clone() for key, tensor in state.named()}
    book = Assignments.of(plan, setup.shape, None)
    steps: Mapping[str, Tensor] | None = None
    shown: Mapping[str, Tensor] = {}
    mean: Mapping[str, Tensor] = before
    task = TrainTask(
        1, state, data.label_names, data.fingerprint, base_fingerprint=setup.base_fingerprint
    )
    for number in range(1, rounds + 1):
        assigned = book.by_client if book is not None else {}
        updates = [
            train_client(
                config,
                Node(client, client, CLIENTS, None),
                replace(task, server_round=number, state=state, assigned=assigned.get(client)),
            )
            for client in range(CLIENTS)
        ]
        info = round_info(number, updates)
        root = updates[0].changes if plan.needs_root else None  # as if its rows were the server's
        found = aggregate(state, updates, plan, info, steps, root=root)
        state = ModelState()
        for key, tensor in found.tensors:
            state.insert(key, tensor.clone())
        steps = found.state
        mean, shown = reported(dict(state.named()), plan.server.reported, info, shown)
        task = replace(task, broadcast=flat_signals(found.told))
        if book is not None:
            book.renew(replies_of(updates))
    return Played(before, dict(state.named()), mean)
