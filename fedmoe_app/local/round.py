"""A client's round: take the global model, measure it, train, and return what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedmoe_app.config import RunConfig
from fedmoe_app.local.node import Node
from fedmoe_app.local.prepared import ClientRows, client_rows
from fedmoe_app.local.setup import Setup, load_setup
from fedmoe_app.local.tasks import Row, Score, evaluate
from fedmoe_app.local.train import LocalRun, client_seed, one_client, train
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.routing import RoutingRecorder, RoutingStats
from fedmoe_app.moe.trainable import Trainables
from fedmoe_app.schemes import make_scheme
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.wire.records import TrainTask
from fedmoe_app.wire.update import ClientScore, ClientUpdate


def train_client(config: RunConfig, node: Node, task: TrainTask) -> ClientUpdate:
    """Train on this node's data for one round.

    The received model is scored on the client's own test examples before training (``loss``,
    ``accuracy``) and again after it (``local-loss``, ``local-accuracy``), so that no second
    message, and no second start of a client process, is needed.
    """
    scheme = make_scheme(config)
    with one_client(client_seed(config.seed, task.server_round, node.client), config.train.threads):
        setup = load_setup(config, task.label_names)
        scheme.check(setup.shape)
        rows = client_rows(config, node, task, setup)
        write_state(setup.model, setup.layers, task.state)
        return _train(config, node, task, scheme, setup, rows)


def _train(
    config: RunConfig,
    node: Node,
    task: TrainTask,
    scheme: Scheme,
    setup: Setup,
    rows: ClientRows,
) -> ClientUpdate:
    seed = client_seed(config.seed, task.server_round, node.client)
    before = _score(config, setup, rows.test)
    experts = scheme.choose_experts(_usage(config, setup, rows.train, seed))
    trainables = Trainables(setup.model, setup.layers, experts)
    with RoutingRecorder(setup.layers, keep_probs=scheme.needs_router_probs) as recorder:
        broadcast = {name: t.to(setup.model.device) for name, t in task.broadcast.items()}
        run = LocalRun(setup.model, trainables, recorder, setup.task, scheme, broadcast)
        result = train(run, rows.train, config.train, seed)
        routing = recorder.stats(trainables.trained)
    changes = trainables.changes()
    after = _score(config, setup, rows.test)
    return ClientUpdate(
        client=node.client,
        num_examples=len(rows.train),
        num_partitions=0 if node.data_path is not None else node.num_partitions or 0,
        changes=changes,
        routing=routing,
        metrics={
            "train-loss": result.loss,
            "num-steps": result.num_steps,
            "num-truncated": rows.train.num_cut,
            **_score_metrics("", before),
            **_score_metrics("local-", after),
        },
    )


def evaluate_client(config: RunConfig, node: Node, task: TrainTask) -> ClientScore:
    """Score the received model on this node's own test examples; zero items if it has none."""
    with one_client(config.seed, config.train.threads):
        setup = load_setup(config, task.label_names)
        rows = client_rows(config, node, task, setup)
        write_state(setup.model, setup.layers, task.state)
        score = _score(config, setup, rows.test)
        return ClientScore(node.client, score.loss, score.correct, score.items)


def _score(config: RunConfig, setup: Setup, rows: Sequence[Row]) -> Score:
    return evaluate(setup.model, setup.task, rows, config.train.per_device_eval_batch_size)


def _score_metrics(prefix: str, score: Score) -> dict[str, float]:
    """Name a score's means; a client without test examples has none."""
    if not score.items:
        return {}
    return {
        f"{prefix}loss": score.mean_loss,
        f"{prefix}accuracy": score.accuracy,
        "num-test-items": score.items,
    }


def _usage(
    config: RunConfig, setup: Setup, rows: Sequence[Row], seed: int
) -> Callable[[int], RoutingStats]:
    """Return the function by which a scheme measures the received model's routing.

    It draws the examples: a file may be sorted by label, and its head one class only.
    """

    def usage(max_examples: int) -> RoutingStats:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        drawn = [rows[i] for i in sorted(order[:max_examples].tolist())]
        with RoutingRecorder(setup.layers) as recorder:
            setup.model.eval()
            size = config.train.per_device_eval_batch_size
            for start in range(0, len(drawn), size):
                batch = setup.task.collate(drawn[start : start + size], setup.model.device)
                recorder.mask(batch.attention_mask, batch.decoder_mask)
                setup.task.score(setup.model, batch)
            return recorder.stats(None)

    return usage
