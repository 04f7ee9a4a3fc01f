"""The server's own training, for rules that compare clients with it: the clients' loop, no scheme.

Cao et al., NDSS 2021, arXiv:2012.13995: the server trains the global model on a few rows that it
trusts, as a client would. Neither experts are chosen nor terms added to the loss here: what is
asked for is the way that the task's own loss goes.
"""

from __future__ import annotations

from fedmoe_app.client.train import LocalRun, learning_rate_factor, num_steps, train
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.state import ModelState
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.seeding import client_seed, one_client
from fedmoe_app.tasks.setup import Setup

_SERVER = 2**31 - 1  # in the place of a client's number: the order of its examples is its own


def train_on_root(
    config: RunConfig, setup: Setup, rows: Encoded, state: ModelState, server_round: int
) -> ModelState:
    """Return the changes of a round of training on the server's rows, float32 on the CPU.

    Args:
        config: of the run; the clients' learning rate, batches and epochs.
        setup: the server's model, whose values are overwritten.
        rows: encoded, at least one.
        state: the global values that the round starts from.
        server_round: from 1.
    """
    seed = client_seed(config.seed, server_round, _SERVER)
    steps = num_steps(len(rows), config.train)
    factor = learning_rate_factor(config.train, server_round, config.num_server_rounds, steps)
    write_state(setup.model, setup.layers, state)
    with (
        one_client(seed, config.train.threads),
        Trainables(setup.model, setup.layers) as trainables,
        RoutingRecorder(setup.layers) as recorder,
    ):
        run = LocalRun(setup.model, trainables, recorder, setup.task, {}, setup.shape.top_k)
        train(run, rows, config.train, seed, factor)
        return trainables.changes()
