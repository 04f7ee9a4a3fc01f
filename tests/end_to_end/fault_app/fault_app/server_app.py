"""The real loop over rounds, recorder and FedAvg around a model of a few numbers."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedmoe_app import FedAvg, ModelState, flatten_run_config, parse_run_config
from fedmoe_app.results.events import log_to_stdout
from fedmoe_app.server.checkpoint import Identity
from fedmoe_app.server.recorder import open_recorder
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.records import decode_state, encode_state

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    log_to_stdout()
    config = parse_run_config(context.run_config)
    limits = Limits(config.min_clients, config.fraction_train, config.wait_for_clients)
    loop = RoundLoop(MoEStrategy(FedAvg(), limits))
    identity = Identity(flatten_run_config(config))
    with open_recorder(config, identity, loop, small_state()) as recorder:
        arrays = encode_state(recorder.state)
        rounds, timeout = config.num_server_rounds, config.round_timeout
        loop.run(grid, arrays, rounds, timeout, evaluate, recorder.callbacks)
    print(f"results: {recorder.folder.path}", flush=True)


def small_state() -> ModelState:
    return ModelState(
        dense={"head": torch.zeros(1)},
        gates={0: {"weight": torch.zeros(2, 2)}},
        experts={(0, expert): {"up": torch.zeros(3)} for expert in range(2)},
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Report the head's value as the loss: the sum of the numbers of all folded rounds."""
    return MetricRecord({"loss": float(decode_state(arrays).dense["head"]), "accuracy": 0.5})
