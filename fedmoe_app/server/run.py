"""A run on the server, from the config to the result folder."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fedmoe_app.aggregation.guard import STRENGTHS, Guard
from fedmoe_app.aggregation.store import MIB, Spool
from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.config.files import new_folder
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.layers import passes, read_state, write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.prefix.find import Prefix
from fedmoe_app.moe.prefix.replay import replayed
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.moe.state import ModelState
from fedmoe_app.privacy.client_level import ClientLevel
from fedmoe_app.privacy.example_level import ExampleLevel, check_examples
from fedmoe_app.privacy.ledger import Ledger
from fedmoe_app.results.best import kept_note
from fedmoe_app.results.classes import Classes, kept_classes
from fedmoe_app.results.events import ResultsAt, TableFollows, logger, tell
from fedmoe_app.results.folder import RunFolder, read_metrics
from fedmoe_app.results.lease import TakenOverError
from fedmoe_app.results.table import print_table
from fedmoe_app.results.trackers import require_trackers
from fedmoe_app.schemes import make_scheme
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.checks import check_holds_chosen, check_run
from fedmoe_app.schemes.sums import PairRule
from fedmoe_app.server.buffered import Buffered
from fedmoe_app.server.checkpoint import Identity, best_state
from fedmoe_app.server.client_list import read_client_list
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.collect import Collect, WaitForAll
from fedmoe_app.server.placement import Placements
from fedmoe_app.server.private import PrivateRounds
from fedmoe_app.server.recorder import RunRecorder, open_recorder
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import Aggregation, ClientTask, Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.summed import MaskedSums, SummedRounds, sum_fault
from fedmoe_app.server.transport import is_deployed
from fedmoe_app.server.validation import EvaluateFn, Validation, check_best, keeper_of
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.prefix import described, frozen_prefix, pays, tried
from fedmoe_app.tasks.seeding import one_client
from fedmoe_app.tasks.setup import Setup, load_setup, root_data, server_data
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.codecs import Offer
from fedmoe_app.wire.records import decode_state, encode_state

if TYPE_CHECKING:
    from fedmoe_app.data.encoding import Encoded
    from fedmoe_app.data.sources import TextData

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


TrainOnRoot = Callable[[RunConfig, Setup, "Encoded", ModelState, int], ModelState]


def run_server(grid: Grid, config: RunConfig, train_on_root: TrainOnRoot | None = None) -> Path:
    """Run all rounds, or those that are left of a run, and return the result folder.

    Everything that can be wrong with config, data and model is found before a node is contacted.

    Args:
        grid: the connection to the nodes.
        config: of the run.
        train_on_root: the clients' training, for schemes whose server trains on rows of its own
            (:func:`fedmoe_app.client.root.train_on_root`); server and client import each other not.

    Raises:
        ConfigError: if the config does not fit the scheme, the data, the model or the checkpoint.
        NotEnoughClientsError, RunFailedError: if the run cannot go on; the folder stays, with the
            checkpoint that it can be resumed from.
    """
    require_trackers(config.track)
    client_list = read_client_list(Path(config.client_list)) if config.client_list else None
    keep_memory_steady()
    scheme = make_scheme(config)
    data = server_data(config.data)
    check_holds_chosen(config)
    setup = load_setup(config, data.label_names, on=config.server_device)
    plan = check_run(config, scheme, setup.shape)
    check_examples(config, plan)
    prefix = frozen_prefix(config, setup)
    chosen = config.model.experts_in_memory == "chosen"
    test = _encode(setup, data.test, "test set")
    state = read_state(setup.model, setup.layers)
    identity = Identity(
        flatten_run_config(config), data.label_names, data.fingerprint, setup.base_fingerprint
    )
    strategy = MoEStrategy(
        scheme,
        Limits(
            min_clients=config.min_clients,
            fraction_train=config.fraction_train,
            wait_for_clients=config.wait_for_clients,
            max_failed_rounds=config.max_failed_rounds,
            evaluate_every=config.evaluate_every,
            clients_per_round=config.clients_per_round,
            wait_for_other_runs=config.wait_for_other_runs,
        ),
        _task(config, setup, data),
        ClientRegistry(config.seed, config.sampling, config.max_rest_rounds, client_list),
        Aggregation(
            Spool(limit=config.spool_above * MIB),
            PairRule(config.exact_pairs_up_to, config.projection_size, config.seed),
            config.diagnostics,
            _guard(config),
        ),
        Placements(setup.shape, config.round_timeout) if chosen else None,
        _private_rounds(config, plan, setup),
        _masked_sums(config, plan),
        _root(config, plan, setup, data, train_on_root),
    )
    check_best(config, strategy.plan)
    loop = RoundLoop(strategy, _collect(config, strategy), _validation(config, setup, data, prefix))
    about = {"flower_run": str(grid.run.run_id), "simulated": not is_deployed(grid)}
    recorder = open_recorder(config, identity, loop, state, about)
    folder = recorder.folder
    strategy.aggregation.store.folder = folder.path  # replies that do not fit in memory wait there
    if strategy.private is not None:
        done = strategy.num_aggregated
        strategy.private.ledger = Ledger(strategy.private.level, folder.path, done)
    with recorder:
        tell(ResultsAt(str(folder.path)))
        _run(grid, config, loop, setup, recorder, test, prefix)
    items = len(test) if test is not None and config.data.kind.classifies else 0
    _write_card(folder.path, items)
    tell(ResultsAt(str(folder.path)))
    return folder.path


def _guard(config: RunConfig) -> Guard | None:
    """Return the bounds of single clients; where these are private they bound themselves."""
    strength = STRENGTHS.get(config.robust.guard)
    private = config.privacy.has_dp or config.privacy.secure_sum
    return None if strength is None or private else Guard(strength)


def _private_rounds(config: RunConfig, plan: Plan, setup: Setup) -> PrivateRounds | None:
    """Return the mechanism of a run with differential privacy."""
    if not config.privacy.has_dp:
        return None
    shape = setup.shape
    return PrivateRounds(ClientLevel.of(config, plan, shape.num_layers, shape.num_experts))


def _masked_sums(config: RunConfig, plan: Plan) -> MaskedSums | None:
    """Return the server's part in masked sums, if the run has them.

    Raises:
        ConfigError: the scheme is none of means by examples.
    """
    if not config.privacy.secure_sum:
        return None
    if fault := sum_fault(plan):
        raise ConfigError(f'privacy.secure-sum = true with scheme = "{config.scheme}": {fault}')
    return MaskedSums(config.privacy)


def _root(
    config: RunConfig, plan: Plan, setup: Setup, data: TextData, train: TrainOnRoot | None
) -> Callable[[ModelState, int], ModelState] | None:
    """Return the server's own training on the rows that it trusts; None where no part needs it.

    Raises:
        ConfigError: it has no such rows.
    """
    if not plan.needs_root:
        return None
    what = f'scheme = "{config.scheme}"'
    if train is None:
        raise ConfigError(f"{what}: needs a server that trains; start it by fedmoe or flwr run")
    own = root_data(config, data)
    if own is None:
        raise ConfigError(
            f"{what}: the server has no training rows to compare clients with, since the nodes "
            "bring theirs; set robust.root-source to some that you trust, or choose "
            '"geometricmedian"'
        )
    rows = _encode(setup, own, "root set")
    assert rows is not None
    return lambda state, server_round: train(config, setup, rows, state, server_round)


def _collect(config: RunConfig, strategy: MoEStrategy) -> Collect:
    if config.rounds == "buffered":
        return Buffered(config.buffer_size)
    return WaitForAll() if strategy.sums is None else SummedRounds(strategy.sums)


def _write_card(run: Path, items: int) -> None:
    """Describe the saved model; where that fails the model is there all the same."""
    from fedmoe_app.results.model_card import write_model_card

    try:
        write_model_card(run, run / "model", items)
    except Exception as error:
        logger.warning("no model card: %s: %s", type(error).__name__, error)


def _task(config: RunConfig, setup: Setup, data: TextData) -> ClientTask:
    """Return what the clients of this run are told."""
    wire = config.wire
    return ClientTask(
        setup.shape,
        data.label_names,
        data.fingerprint,
        setup.base_fingerprint,
        setup.task.metric,
        offer=Offer(wire.codecs, wire.topk_share, wire.error_feedback),
        changed_only=wire.downloads == "changed",
        download_codec=wire.download_codec,
        bounds=_bounds(config, setup, len(data.train)),
        example_level=ExampleLevel.of(config),
    )


def _bounds(config: RunConfig, setup: Setup, num_rows: int) -> TaskBounds:
    """Return what clients of this run can say of themselves.

    Args:
        config: of the run.
        setup: the model.
        num_rows: training examples that the server has a copy of; 0 if the nodes bring theirs.
    """
    data = config.data
    return TaskBounds(
        train=config.train,
        # With histograms that say nothing, tokens are no tokens.
        max_length=0 if config.privacy.withholds else data.max_length,
        top_k=max(layer.top_k for layer in setup.layers),
        test_fraction=data.local_test_fraction,
        items=data.max_length if setup.task.by_token else 1,
        num_rows=num_rows,
        passes=passes(setup.model, setup.layers),
    )


def _run(
    grid: Grid,
    config: RunConfig,
    loop: RoundLoop,
    setup: Setup,
    recorder: RunRecorder,
    test: Encoded | None,
    prefix: Prefix | None,
) -> None:
    folder = recorder.folder
    loop.strategy.summary()
    if prefix is not None:
        logger.info("%s", described(config, setup, prefix))
    if (level := ExampleLevel.of(config)) is not None:
        logger.info("%s", level.said())
    if loop.strategy.private is not None:
        num_values = sum(tensor.numel() for _, tensor in recorder.state.named())
        loop.strategy.private.say_before(num_values, config.num_server_rounds)
    try:
        loop.run(
            grid,
            encode_state(recorder.state),
            config.num_server_rounds,
            config.round_timeout,
            _evaluate_fn(config, setup, test, prefix, folder, loop.strategy.task.label_names),
            recorder.callbacks,
        )
    except TakenOverError:
        raise
    except Exception:
        # A run that fails late keeps the model of its last good round. Ctrl-C and a stopped
        # process do not wait for that: they leave the checkpoint.
        if loop.strategy.num_aggregated:
            _save_if_possible(config, setup, loop, folder)
        raise
    _save(config, setup, loop, folder)
    loop.check_end()  # the nodes keep what they need to repeat the last rounds
    loop.strategy.end_run(grid, not config.keep_client_state, prefix is not None)


def _encode(setup: Setup, own: Dataset | None, what: str) -> Encoded | None:
    """Tokenise rows of the server's, if it has some; ``what`` they are.

    Raises:
        DataError: no text of them gives a token.
    """
    if own is None or len(own) == 0:
        return None
    rows = setup.task.encode(own)
    if not rows:
        raise DataError(
            f"the {what} has no example left: no text gives a token with this model's tokenizer"
        )
    return rows


def _validation(
    config: RunConfig, setup: Setup, data: TextData, prefix: Prefix | None
) -> Validation | None:
    """Return how rounds are scored beside the test set, if they are."""
    keeper, rows = keeper_of(config), _encode(setup, data.validation, "validation set")
    if keeper is None and rows is None:
        return None
    return Validation(keeper, _evaluate_fn(config, setup, rows, prefix))


def _save_if_possible(config: RunConfig, setup: Setup, loop: RoundLoop, folder: RunFolder) -> None:
    """Save the model of a run that failed; that must not hide why it did, such as a full disk."""
    try:
        _save(config, setup, loop, folder)
    except Exception as error:
        logger.warning(
            "%s: the model of the last good round could not be saved (%s: %s); "
            "`fedmoe export` makes it from the checkpoint",
            folder.path,
            type(error).__name__,
            error,
        )


def _evaluate_fn(
    config: RunConfig,
    setup: Setup,
    rows: Encoded | None,
    prefix: Prefix | None,
    folder: RunFolder | None = None,
    label_names: tuple[str, ...] = (),
) -> EvaluateFn | None:
    """Return the function that scores a global state on rows of the server's, if it has some.

    With a folder it also writes the samples of this state there, and how each class did.
    """
    if rows is None:
        return None

    once = _prefix_once(config, setup, rows, prefix)

    def evaluate_global(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        # The same threads every time: their number changes the last bits of a sum.
        with one_client(config.seed, config.train.threads), once():
            write_state(setup.model, setup.layers, decode_state(arrays))
            score = evaluate(setup.model, setup.task, rows, config.train.per_device_eval_batch_size)
            asked = rows[: config.data.num_samples] if folder is not None else []
            samples = setup.task.samples(setup.model, asked) if asked else []
        if folder is not None:
            folder.append_samples(server_round, samples)
        figures = MetricRecord(
            {"loss": score.mean_loss, "accuracy": score.accuracy, "items": score.items}
        )
        if folder is not None and score.confusion is not None:
            classes = Classes(server_round, label_names, score.confusion.numpy())
            folder.append_classes(classes.line())
            figures["macro-f1"] = classes.macro_f1
        return figures

    return evaluate_global


def _prefix_once(
    config: RunConfig, setup: Setup, rows: Encoded, prefix: Prefix | None
) -> Callable[[], AbstractContextManager[None]]:
    """Return what computes the frozen layers of the test set once for all evaluations.

    Raises:
        ConfigError: ``train.prefix-cache = "on"``, and the model cannot be run from there on.
    """
    if prefix is None or not pays(config.train, setup, rows, num_trained=0):
        return nullcontext
    if tried(config, setup, prefix) is None:
        return nullcontext
    states = HiddenStates(config.train.prefix_cache_mib * MIB)
    return lambda: replayed(prefix, states)


def _save(config: RunConfig, setup: Setup, loop: RoundLoop, folder: RunFolder) -> None:
    """Save the kept model, and its adapter if there is one; plot, and print the table."""
    best = loop.validation.best if loop.validation is not None else None
    state = decode_state(loop.result) if best is None else best_state(folder.path, best)
    write_state(setup.model, setup.layers, state)
    with folder.writing():
        if config.model.train == "expert-lora":
            _save_adapter(config, setup, folder)
        if config.model.train == "expert-lora" or config.model.attention_lora:
            from fedmoe_app.moe.training.lora import merge_adapters  # PEFT takes long to import

            merge_adapters(setup.model, setup.layers)
        _save_model(setup, folder.path / "model")
        from fedmoe_app.report.plots import plot_run

        plot_run(folder.path)
    tell(TableFollows())
    lines = read_metrics(folder.path)
    print_table(lines)
    if note := kept_note(lines):
        logger.info("kept model: %s", note)
    if (classes := kept_classes(folder.path, lines)) is not None:
        logger.info("%s", classes.said())


def _save_model(setup: Setup, path: Path) -> None:
    with new_folder(path, replace=True) as draft:  # there may be one of an earlier part of the run
        setup.model.save_pretrained(draft)
        setup.tokenizer.save_pretrained(draft)


def _save_adapter(config: RunConfig, setup: Setup, folder: RunFolder) -> None:
    """Save the adapter for PEFT, which merging destroys; where that fails there is none."""
    from fedmoe_app.moe.export import export_adapter  # PEFT takes long to import

    base = "" if config.model.name in PRESETS else located(config.model.name)
    try:
        export_adapter(setup.model, setup.layers, folder.path / "adapter", base)
    except Exception as error:  # whatever PEFT does: the model must not be lost with its adapter
        logger.warning("no adapter folder: %s: %s", type(error).__name__, error)
