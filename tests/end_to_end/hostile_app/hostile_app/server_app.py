"""The real loop over rounds, recorder and FedAvg around a model of a few numbers.

The nodes score the model: the server has no test set.
"""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmoe_app import (
    FedAvg,
    ModelShape,
    ModelState,
    RunConfig,
    flatten_run_config,
    parse_run_config,
)
from fedmoe_app.results.events import log_to_stdout
from fedmoe_app.server.buffered import Buffered
from fedmoe_app.server.checkpoint import Identity
from fedmoe_app.server.client_list import read_client_list
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.recorder import open_recorder
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.records import encode_state

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    log_to_stdout()
    run(grid, parse_run_config(context.run_config))


def run(grid: Grid, config: RunConfig) -> RoundLoop:
    loop = make_loop(config)
    identity = Identity(flatten_run_config(config))
    with open_recorder(config, identity, loop, small_state()) as recorder:
        arrays = encode_state(recorder.state)
        rounds, timeout = config.num_server_rounds, config.round_timeout
        loop.run(grid, arrays, rounds, timeout, callbacks=recorder.callbacks)
    print(f"results: {recorder.folder.path}", flush=True)
    return loop


def make_loop(config: RunConfig) -> RoundLoop:
    limits = Limits(
        config.min_clients,
        config.fraction_train,
        config.wait_for_clients,
        evaluate_every=config.evaluate_every,
        clients_per_round=config.clients_per_round,
        max_failed_rounds=config.max_failed_rounds,
    )
    bounds = TaskBounds(
        train=config.train,
        max_length=config.data.max_length,
        top_k=1,
        test_fraction=config.data.local_test_fraction,
    )
    path = config.client_list
    strategy = MoEStrategy(
        FedAvg(),
        limits,
        ClientTask(ModelShape(1, 2, 1), bounds=bounds),
        ClientRegistry(
            longest_cooldown=config.max_rest_rounds,
            client_list=read_client_list(Path(path)) if path else None,
        ),
    )
    buffered = config.rounds == "buffered"
    return RoundLoop(strategy, Buffered(config.buffer_size) if buffered else None)


def small_state() -> ModelState:
    return ModelState(
        dense={"head": torch.zeros(1)},
        gates={0: {"weight": torch.zeros(2, 2)}},
        experts={(0, expert): {"up": torch.zeros(3)} for expert in range(2)},
    )
