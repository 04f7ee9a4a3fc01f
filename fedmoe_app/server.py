"""A run on the server, from the config to the result folder."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from datasets import Dataset
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fedmoe_app.buffered import BufferedStrategy, check_buffered
from fedmoe_app.config import RunConfig, flatten_run_config
from fedmoe_app.local.setup import Setup, load_setup, server_data
from fedmoe_app.local.tasks import evaluate
from fedmoe_app.local.train import one_client
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.layers import read_state, write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.lora import merge_adapters
from fedmoe_app.paths import results_dir
from fedmoe_app.report.lines import RoundReport, metrics_line
from fedmoe_app.report.log import RunFolder, read_metrics
from fedmoe_app.report.table import print_table
from fedmoe_app.rounds import EvaluateFn, Limits
from fedmoe_app.schemes import make_scheme
from fedmoe_app.schemes.projection import PairRule
from fedmoe_app.spool import MIB, Spool
from fedmoe_app.strategy import MoEStrategy
from fedmoe_app.wire.records import decode_state, encode_state

logger = logging.getLogger("fedmoe")


def run_server(grid: Grid, config: RunConfig) -> Path:
    """Run all rounds and return the result folder.

    Everything that can be wrong with config, data and model is found before a node is contacted.

    Raises:
        ConfigError: if the config does not fit the scheme, the data or the model.
        NotEnoughClientsError, RunFailedError: if the run cannot go on; the folder stays.
    """
    scheme = make_scheme(config)
    data = server_data(config)
    setup = load_setup(config, data.label_names)
    scheme.check(setup.shape)
    if config.rounds == "buffered":
        check_buffered(scheme)
    folder = _result_folder(config)
    folder.write_config(flatten_run_config(config))
    metric = setup.task.metric
    strategy_class = BufferedStrategy if config.rounds == "buffered" else MoEStrategy

    def on_round(report: RoundReport) -> None:
        folder.append(metrics_line(report, metric))

    strategy = strategy_class(
        scheme,
        Limits(
            config.min_clients,
            config.fraction_train,
            config.wait_for_clients,
            config.max_failed_rounds,
            config.evaluate_every,
            config.clients_per_round,
            config.sampling,
            config.max_rest_rounds,
            config.buffer_size if config.rounds == "buffered" else 0,
        ),
        spool=Spool(folder.path, config.spool_above * MIB),
        pairs=PairRule(config.exact_pairs_up_to, config.projection_size, config.seed),
        seed=config.seed,
        shape=setup.shape,
        forget=not config.keep_client_state,
        diagnose=config.diagnostics,
        label_names=data.label_names,
        data_fingerprint=data.fingerprint,
        base_fingerprint=setup.base_fingerprint,
        on_round=on_round,
    )
    logger.info("results: %s", folder.path)
    _run(grid, config, strategy, setup, data.test, folder)
    return folder.path


def _run(
    grid: Grid,
    config: RunConfig,
    strategy: MoEStrategy,
    setup: Setup,
    test: Dataset | None,
    folder: RunFolder,
) -> None:
    strategy.summary()
    try:
        strategy.start(
            grid,
            encode_state(read_state(setup.model, setup.layers)),
            config.num_server_rounds,
            config.round_timeout,
            evaluate_fn=_evaluate_fn(config, setup, test, folder),
        )
    finally:
        # A run that fails late keeps the model of its last good round.
        if strategy.result.train_metrics_clientapp:
            _save(config, setup, strategy.result.arrays, folder)
    strategy.end_run(grid)
    logger.info("results: %s", folder.path)


def _evaluate_fn(
    config: RunConfig, setup: Setup, test: Dataset | None, folder: RunFolder
) -> EvaluateFn | None:
    """Return the function that scores a global state on the server's test set, if it has one.

    It also writes the samples of this state to the result folder.
    """
    if test is None or len(test) == 0:
        return None
    rows = setup.task.encode(test)

    def evaluate_global(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        # The same threads every time: their number changes the last bits of a sum.
        with one_client(config.seed, config.train.threads):
            write_state(setup.model, setup.layers, decode_state(arrays))
            score = evaluate(setup.model, setup.task, rows, config.train.per_device_eval_batch_size)
            samples = setup.task.samples(setup.model, rows[: config.data.num_samples])
        folder.append_samples(server_round, samples)
        return MetricRecord(
            {"loss": score.mean_loss, "accuracy": score.accuracy, "items": score.items}
        )

    return evaluate_global


def _save(config: RunConfig, setup: Setup, arrays: ArrayRecord, folder: RunFolder) -> None:
    """Save the final model, and its adapter if there is one; plot, and print the table."""
    write_state(setup.model, setup.layers, decode_state(arrays))
    if config.model.train == "expert-lora":
        _save_adapter(config, setup, folder)
    merge_adapters(setup.model, setup.layers)
    setup.model.save_pretrained(folder.path / "model")
    setup.tokenizer.save_pretrained(folder.path / "model")
    from fedmoe_app.report.plots import plot_run

    plot_run(folder.path)
    print_table(read_metrics(folder.path))


def _save_adapter(config: RunConfig, setup: Setup, folder: RunFolder) -> None:
    """Save the adapter for PEFT, which merging destroys; where that fails there is none."""
    base = "" if config.model.name in PRESETS else config.model.name
    try:
        export_adapter(setup.model, setup.layers, folder.path / "adapter", base)
    except Exception as error:  # whatever PEFT does: the model must not be lost with its adapter
        logger.warning("no adapter folder: %s: %s", type(error).__name__, error)


def _result_folder(config: RunConfig) -> RunFolder:
    base = Path(config.output_dir) if config.output_dir else results_dir()
    # Microseconds keep two runs of one second apart.
    name = (
        config.run_name or f"{config.scheme.rpartition(':')[2]}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    )
    return RunFolder(base / name)
