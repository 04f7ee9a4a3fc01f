"""A run on the server, from the config to the result folder."""

from __future__ import annotations

import ctypes
import logging
import shutil
import sys
from pathlib import Path

from datasets import Dataset
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fedmoe_app.aggregation.store import MIB, Spool
from fedmoe_app.config.errors import DataError
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.paths import follow_umask
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.layers import passes, read_state, write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.results.folder import RunFolder, read_metrics
from fedmoe_app.results.lease import TakenOverError
from fedmoe_app.results.table import print_table
from fedmoe_app.results.trackers import require_trackers
from fedmoe_app.schemes import make_scheme
from fedmoe_app.schemes.checks import check_holds_chosen, check_run
from fedmoe_app.schemes.sums import PairRule
from fedmoe_app.server.buffered import BufferedStrategy
from fedmoe_app.server.checkpoint import Identity
from fedmoe_app.server.client_list import read_client_list
from fedmoe_app.server.placement import Holding
from fedmoe_app.server.recorder import open_journal
from fedmoe_app.server.rounds import EvaluateFn, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.transport import is_deployed
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.seeding import one_client
from fedmoe_app.tasks.setup import Setup, load_setup, server_data
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.codecs import Offer
from fedmoe_app.wire.records import decode_state, encode_state

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt(3)
_LARGE = 2**20  # bytes


def keep_memory_steady() -> None:
    """Let every large buffer be a mapping of its own that goes back to the system when it is freed.

    By itself glibc stops doing that once it has seen some, and puts replies of megabytes between
    the small objects that outlive them: the process then grows, by chance up to twice its size over
    a thousand replies. The price: the sums of a round take fresh pages each time, about two seconds
    a gigabyte (docs/scale.md). Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


logger = logging.getLogger("fedmoe")


def run_server(grid: Grid, config: RunConfig) -> Path:
    """Run all rounds, or those that are left of a run, and return the result folder.

    Everything that can be wrong with config, data and model is found before a node is contacted.

    Raises:
        ConfigError: if the config does not fit the scheme, the data, the model or the checkpoint.
        NotEnoughClientsError, RunFailedError: if the run cannot go on; the folder stays, with the
            checkpoint that it can be resumed from.
    """
    require_trackers(config)
    client_list = read_client_list(Path(config.client_list)) if config.client_list else None
    keep_memory_steady()
    scheme = make_scheme(config)
    data = server_data(config)
    check_holds_chosen(config)
    setup = load_setup(config, data.label_names, on=config.server_device)
    check_run(config, scheme, setup.shape)
    chosen = config.model.experts_in_memory == "chosen"
    strategy_class = BufferedStrategy if config.rounds == "buffered" else MoEStrategy
    test = _encode(setup, data.test)
    state = read_state(setup.model, setup.layers)
    identity = Identity(
        flatten_run_config(config), data.label_names, data.fingerprint, setup.base_fingerprint
    )
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
            config.wait_for_other_runs,
        ),
        spool=Spool(limit=config.spool_above * MIB),
        pairs=PairRule(config.exact_pairs_up_to, config.projection_size, config.seed),
        seed=config.seed,
        shape=setup.shape,
        forget=not config.keep_client_state,
        diagnose=config.diagnostics,
        label_names=data.label_names,
        data_fingerprint=data.fingerprint,
        base_fingerprint=setup.base_fingerprint,
        holding=Holding(setup.shape, config.round_timeout) if chosen else None,
        changed_only=config.wire.downloads == "changed",
        download_codec=config.wire.download_codec,
        offer=Offer(config.wire.codecs, config.wire.topk_share, config.wire.error_feedback),
        bounds=_bounds(config, setup, len(data.train)),
        client_list=client_list,
    )
    about = {"flower_run": str(grid.run.run_id), "simulated": not is_deployed(grid)}
    journal = open_journal(config, identity, strategy, state, setup.task.metric, about)
    folder = journal.folder
    strategy.on_round = journal.on_round
    strategy.spool_to(folder.path)
    with journal:
        logger.info("results: %s", folder.path)
        _run(grid, config, strategy, setup, encode_state(journal.state), test, folder)
    items = len(test) if test is not None and config.data.task == "classification" else 0
    _write_card(folder.path, items)
    logger.info("results: %s", folder.path)
    return folder.path


def _write_card(run: Path, items: int) -> None:
    """Describe the saved model; where that fails the model is there all the same."""
    from fedmoe_app.results.model_card import write_model_card

    try:
        write_model_card(run, run / "model", items)
    except Exception as error:
        logger.warning("no model card: %s: %s", type(error).__name__, error)


def _bounds(config: RunConfig, setup: Setup, num_rows: int) -> TaskBounds:
    """Return what clients of this run can say of themselves.

    Args:
        config: of the run.
        setup: the model.
        num_rows: training examples that the server has a copy of; 0 if the nodes bring theirs.
    """
    data = config.data
    by_token = data.task == "causal-lm" and data.metric != "exact-match"
    return TaskBounds(
        train=config.train,
        max_length=data.max_length,
        top_k=max(layer.top_k for layer in setup.layers),
        test_fraction=data.local_test_fraction,
        items=data.max_length if by_token else 1,
        num_rows=num_rows,
        passes=passes(setup.model, setup.layers),
    )


def _run(
    grid: Grid,
    config: RunConfig,
    strategy: MoEStrategy,
    setup: Setup,
    arrays: ArrayRecord,
    test: Encoded | None,
    folder: RunFolder,
) -> None:
    strategy.summary()
    try:
        strategy.start(
            grid,
            arrays,
            config.num_server_rounds,
            config.round_timeout,
            evaluate_fn=_evaluate_fn(config, setup, test, folder),
        )
    except TakenOverError:
        raise
    except Exception:
        # A run that fails late keeps the model of its last good round. Ctrl-C and a stopped
        # process do not wait for that: they leave the checkpoint.
        if strategy.num_folded:
            _save_if_possible(config, setup, strategy.result.arrays, folder)
        raise
    _save(config, setup, strategy.result.arrays, folder)
    strategy.check_end()  # the nodes keep what they need to repeat the last rounds
    strategy.end_run(grid)


def _encode(setup: Setup, test: Dataset | None) -> Encoded | None:
    """Tokenise the server's test set, if it has one.

    Raises:
        DataError: no text of it gives a token.
    """
    if test is None or len(test) == 0:
        return None
    rows = setup.task.encode(test)
    if not rows:
        raise DataError(
            "the test set has no example left: no text gives a token with this model's tokenizer"
        )
    return rows


def _save_if_possible(
    config: RunConfig, setup: Setup, arrays: ArrayRecord, folder: RunFolder
) -> None:
    """Save the model of a run that failed; that must not hide why it did, such as a full disk."""
    try:
        _save(config, setup, arrays, folder)
    except Exception as error:
        logger.warning(
            "%s: the model of the last good round could not be saved (%s: %s); "
            "`fedmoe export` makes it from the checkpoint",
            folder.path,
            type(error).__name__,
            error,
        )


def _evaluate_fn(
    config: RunConfig, setup: Setup, rows: Encoded | None, folder: RunFolder
) -> EvaluateFn | None:
    """Return the function that scores a global state on the server's test set, if it has one.

    It also writes the samples of this state to the result folder.
    """
    if rows is None:
        return None

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
    with folder.writing():
        if config.model.train == "expert-lora":
            _save_adapter(config, setup, folder)
        merge_adapters(setup.model, setup.layers)
        _save_model(setup, folder.path / "model")
        from fedmoe_app.report.plots import plot_run

        plot_run(folder.path)
    print_table(read_metrics(folder.path))


def _save_model(setup: Setup, path: Path) -> None:
    """Write a model folder under another name, then rename it: there is never half of one."""
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        setup.model.save_pretrained(temporary)
        setup.tokenizer.save_pretrained(temporary)
        follow_umask(temporary)
        shutil.rmtree(path, ignore_errors=True)  # that of an earlier part of the run
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room


def _save_adapter(config: RunConfig, setup: Setup, folder: RunFolder) -> None:
    """Save the adapter for PEFT, which merging destroys; where that fails there is none."""
    base = "" if config.model.name in PRESETS else located(config.model.name)
    try:
        export_adapter(setup.model, setup.layers, folder.path / "adapter", base)
    except Exception as error:  # whatever PEFT does: the model must not be lost with its adapter
        logger.warning("no adapter folder: %s: %s", type(error).__name__, error)
