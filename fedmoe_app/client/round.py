"""A client's round: take the global model, measure it, train, and return what changed.

The file is long because training, measuring, choosing experts and scoring prepare the same round
and read the same few values of it; each step's own work stands in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app.client.cards import cards_of
from fedmoe_app.client.examples import train_by_example
from fedmoe_app.client.inputs import sums_of_inputs
from fedmoe_app.client.memory import (
    LOADING,
    SCORING,
    TRAINING,
    doing,
    estimate,
    largest_budget,
    round_note,
)
from fedmoe_app.client.outgoing import sent_by
from fedmoe_app.client.outputs import received_logits, step_outputs, sums_of_outputs
from fedmoe_app.client.parts import ClientParts
from fedmoe_app.client.personal import OwnModel
from fedmoe_app.client.placement import assigned_by, choose, chosen_by, experts_to_load
from fedmoe_app.client.prefix import prefix_once
from fedmoe_app.client.recall import NOTHING, Recalled, recall, remember
from fedmoe_app.client.rows import ClientRows, client_rows, divided
from fedmoe_app.client.state import Keeping
from fedmoe_app.client.timing import Stopwatch
from fedmoe_app.client.train import (
    Factor,
    LocalRun,
    MeanOfGradients,
    TrainResult,
    learning_rate_factor,
    train,
)
from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.config.node import Node, experts_in
from fedmoe_app.config.policy import node_policy
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.partial.streamed import all_experts
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.moe.routing import OnRoute, RoutingRecorder, RoutingStats
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.moe.training.grouped import pays_on
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.privacy.clipping import only_changes
from fedmoe_app.privacy.example_level import ExampleLevel, check_examples
from fedmoe_app.privacy.node_ledger import NodeLedger, data_set
from fedmoe_app.schemes import make_scheme
from fedmoe_app.schemes.base import Plan, Run, signals_of
from fedmoe_app.schemes.parts import InBatch, Measured, OfInputs, OfOutput, Once, Select
from fedmoe_app.schemes.views import EMPTY, NO_NUMBER, LocalClient, Trained
from fedmoe_app.tasks.base import Score, Task, evaluate
from fedmoe_app.tasks.seeding import client_seed, one_client
from fedmoe_app.tasks.setup import Setup, check_base, load_setup
from fedmoe_app.wire.metrics import EXPERT_BUDGET
from fedmoe_app.wire.records import TrainTask
from fedmoe_app.wire.update import ClientScore, ClientUpdate, Placement


def train_client(
    config: RunConfig, node: Node, task: TrainTask, watch: Stopwatch | None = None
) -> ClientUpdate:
    """Train on this node's data for one round.

    The received model is scored on the client's own test examples before training (``loss``,
    ``accuracy``) and the local one after it (``local-loss``, ``local-accuracy``), so that no second
    message, and no second start of a client process, is needed. Where the scheme has a personal
    copy, the local one is the mixture of both. ``watch`` gets the seconds of each phase.
    """
    watch = watch or Stopwatch()
    seed = client_seed(config.seed, task.server_round, node.client)
    with doing(round_note(task.server_round)), one_client(seed, config.train.threads):
        client = prepare_round(config, node, task, watch)
        if (level := ExampleLevel.of(config)) is not None:
            _spend(level, node, task)
        with client.prefix_once():
            update = client.run()
        return only_changes(update) if level is not None else update


def _spend(level: ExampleLevel, node: Node, task: TrainTask) -> None:
    """Note what this round spends of the node's examples, before it trains.

    Raises:
        RefusedError: with the run's other rounds that would be more than the node's policy allows.
    """
    policy = node_policy()
    limit, delta = (None, level.delta) if policy is None else (policy.max_epsilon, policy.delta)
    rest = level.spent(max(0, level.rounds - task.server_round))
    NodeLedger().spend(data_set(node), level.spent(), rest, limit, delta, task.run_key)


def choose_for_client(config: RunConfig, node: Node, task: TrainTask) -> Placement:
    """Choose the experts that this node has in its first round, by the state without experts.

    Raises:
        ConfigError: the run promises privacy, and which experts these are tells of the data.
    """
    if promised := config.privacy.promised:
        raise ConfigError(f"{promised}: which experts fit this node's rows does not leave it")
    seed = client_seed(config.seed, task.server_round, node.client)
    with doing(round_note(task.server_round)), one_client(seed, config.train.threads):
        client = prepare_round(config, node, task, Stopwatch())
        with client.prefix_once():
            return client.choose()


def measure_for_client(config: RunConfig, node: Node, task: TrainTask) -> Tensors:
    """Return what the steps hold for which nobody trains, of the received model."""
    with doing(round_note(task.server_round)), one_client(config.seed, config.train.threads):
        client = prepare_round(config, node, task, Stopwatch())
        with client.prefix_once():
            return client.measure()


def prepare_round(config: RunConfig, node: Node, task: TrainTask, watch: Stopwatch) -> ClientRound:
    """Load model and data, and write the received values into the model."""
    scheme = make_scheme(config)
    with watch.phase("load"), doing(LOADING):
        setup = _load(config, node, task)
    check_base(setup, task.base_fingerprint)
    plan = Plan.of(scheme, setup.shape)
    plan.check(Run(setup.shape, task=config.data.task))
    check_examples(config, plan)
    policy = node_policy()
    if policy is not None:
        policy.check_promise(config.privacy.example_dp)
    with watch.phase("data"):
        rows = client_rows(config, node, task, setup)
    # With privacy of examples a node without any answers like the others, by noise alone.
    if not rows.train and not config.privacy.example_dp:
        raise DataError("no example is left to train on: no text gives a token with this tokenizer")
    rows = divided(rows, plan.client.split, client_seed(config.seed, 0, node.client))
    if policy is not None:
        steps, asked = _all_steps(config, plan, len(rows.train))
        policy.check_round(rows.num_examples, steps, asked)
    with watch.phase("apply"):
        write_state(setup.model, setup.layers, task.state)
    return ClientRound(config, node, task, plan, setup, rows, watch)


def _load(config: RunConfig, node: Node, task: TrainTask) -> Setup:
    """Load the model as the node's own config and the task say."""
    loaded, cards = experts_to_load(config, task), cards_of(node, config)
    return load_setup(config, task.label_names, loaded, cards=cards)


def _num_steps(config: RunConfig, num_examples: int) -> int:
    """Return the optimiser steps of a round, which must not depend on data that are private."""
    return (
        config.train.max_steps
        if config.privacy.example_dp
        else config.train.num_steps(num_examples)
    )


def _all_steps(config: RunConfig, plan: Plan, num_trained: int) -> tuple[int, dict[str, object]]:
    """Return all optimiser steps of a round here, and the run's keys that they follow from.

    Those of a personal copy count like those of the global one, whether both have one loss or not:
    each is an optimiser's pass through a model as large.
    """
    asked: dict[str, object] = {"train.max-steps": config.train.max_steps}
    if not config.train.max_steps:
        asked["train.num-train-epochs"] = config.train.num_train_epochs
    steps = _num_steps(config, num_trained)
    if plan.client.personal is None:
        return steps, asked
    return 2 * steps, asked | {"scheme": config.scheme}  # the personal copy's, too


@dataclass(frozen=True)
class ClientRound:
    """One client's round: what takes part in it, and its steps in order."""

    config: RunConfig
    node: Node
    task: TrainTask
    plan: Plan
    setup: Setup
    rows: ClientRows
    watch: Stopwatch = field(default_factory=Stopwatch)

    def run(self) -> ClientUpdate:
        """Score, train, score again; keep what the scheme keeps; return what changed."""
        parts = ClientParts(self.plan)
        keeping = Keeping(parts, self.task, self.node.client)
        before = self._score(self.setup.task, self.rows.test)
        received_score = None
        if parts.needs_received_score:
            received_score = self._score(self.setup.task, self.rows.train)
        sums = self.sums_of(self.plan.measured)
        teacher = self._received_logits() if self.plan.needs_teacher else EMPTY
        with self.watch.phase("apply"):
            started, own = keeping.start(self.setup)
        with self.watch.phase("train"):
            client = self._local_client()
            loaded = experts_to_load(self.config, self.task)
            # The next round's experts are chosen by the received values, like those of this one.
            select = self.plan.client.select
            once = select if isinstance(select, Once) else None
            assigns = self.plan.server.assign is not None
            chooses = loaded is not None and once and not assigns
            placement = choose(once, client) if once and chooses else None
            chosen = loaded or assigned_by(self.task, self.setup.shape)
            if chosen is None and once and loaded is None:
                chosen = chosen_by(once, client)
            model, layers = self.setup.model, self.setup.layers
            trainables = Trainables(model, layers, chosen, stacked=self._stacked)
            gradient = MeanOfGradients() if self.plan.needs_gradient else None
            with sums_of_inputs(self.plan, self.setup, trainables) as inputs:
                result, routing = self._train(
                    trainables, client, started, own, parts, gradient, teacher
                )
            changes = _from_received(trainables.changes(), started, self.task.state)
            if own is not None and not own.joint:
                trainables.detach()
                del trainables  # the local copy goes before the personal one is trained
                self._train_own(own)
        after = self._score(self.setup.task if own is None else own.task, self.rows.test)
        parts.done = Trained(
            self.task.state,
            changes,
            told=signals_of(self.task.broadcast),
            gradient={} if gradient is None else _on(torch.device("cpu"), gradient.mean()),
        )
        with self.watch.phase("encode"):
            keeping.store(changes, own)
        metrics = self._metrics(result, client) | {
            **keeping.metrics(),
            **_score_metrics("", before),
            **_score_metrics("local-", after),
            **self._own_metrics(own),
        }
        measured = parts.measure(received_score) | sums | inputs.numbers()
        changes, measured = sent_by(self.plan.client.send, changes, measured, self._seed)
        return ClientUpdate(
            client=self.node.client,
            num_examples=self.rows.num_examples,
            num_partitions=self._num_partitions(),
            changes=changes,
            routing=routing,
            metrics=metrics,
            placement=placement,
            statistics=measured,
        )

    def measure(self) -> Tensors:
        """Return what is summed without training; remember of what, where the loss looks back."""
        features: list[Tensor] = []
        note = features.append if self.plan.recalls else None
        sums = self.sums_of(self.plan.measured_apart, note)
        if features:
            remember(self.task, self.node.client, torch.cat(features))
        return sums

    def prefix_once(self) -> AbstractContextManager[HiddenStates | None]:
        """Compute the model's frozen layers at most once a text inside; see there."""
        key, client = self.task.run_key, self.node.client
        return prefix_once(self.config, self.setup, self.rows, key, client)

    def sums_of(
        self, statistics: Sequence[Measured], note: Callable[[Tensor], None] | None = None
    ) -> Tensors:
        """Return those of the statistics that are sums over the received model's outputs."""
        wanted = [statistic for statistic in statistics if isinstance(statistic, OfOutput)]
        if not wanted:
            return {}
        forward = self._forward(self.rows.summed)
        with self.watch.phase("evaluate"), doing(SCORING):
            return sums_of_outputs(*forward, wanted, *([] if note is None else [note]))

    def _received_logits(self) -> Tensor:
        with self.watch.phase("evaluate"), doing(SCORING):
            return received_logits(*self._forward(self.rows.train))

    def _recalled(self) -> Recalled:
        if not self.plan.recalls or self.rows.apart is not None:  # none of these was summed
            return NOTHING
        return recall(self.task, self.node.client, len(self.rows.train))

    def _forward(self, rows: Sequence[Row]) -> tuple[PreTrainedModel, Task, Sequence[Row], int]:
        size = self.config.train.per_device_eval_batch_size
        return self.setup.model, self.setup.task, rows, size

    def choose(self) -> Placement:
        """Choose the experts to load, by the model as it is."""
        select = self.plan.client.select
        assert isinstance(select, Once)  # the server asks nobody else
        return choose(select, self._local_client())

    def _local_client(self) -> LocalClient:
        shape, budget = self.setup.shape, self.node.expert_budget
        is_numbered = self.node.partition_id is not None
        if self.plan.keeps_state and not is_numbered:
            raise ConfigError(NO_NUMBER)
        own_budget = None if budget is None else experts_in(budget, shape.num_experts)
        fitting = self._fitting(own_budget)
        client = LocalClient(self.node.client, shape, fitting, self._usage, is_numbered)
        if self.plan.client.select is not None:
            self.plan.client.select.budget(client)  # may ask for the number, and had better now
        return client

    def _fitting(self, own_budget: int | None) -> int | None:
        """Return the budget that fits the node's memory, too; refuse a model that does not."""
        if self.node.memory_budget is None:
            return own_budget
        shape, need = self.setup.shape, estimate(self.setup, self.config)
        least = shape.top_k if self._loads_chosen else shape.num_experts
        fitting = largest_budget(need, self.node.memory_budget, least, shape.num_experts)
        if not self._loads_chosen:  # the model is there as a whole, whatever is trained
            return own_budget
        return fitting if own_budget is None else min(own_budget, fitting)

    def _train(
        self,
        trainables: Trainables,
        client: LocalClient,
        started: ModelState,
        own: OwnModel | None,
        parts: ClientParts,
        gradient: MeanOfGradients | None,
        teacher: Tensor,
    ) -> tuple[TrainResult, RoutingStats]:
        setup, plan = self.setup, self.plan
        device = setup.model.device
        recorder = RoutingRecorder(
            setup.layers,
            regions=plan.needs_regions,
            keep_probs=plan.needs_router_probs,
            on_route=_batch_selection(trainables, plan.client.select, client),
        )
        joint = own if own is not None and own.joint else None
        factor = self._learning_rate()
        beside = joint.training(self.config.train, factor) if joint else nullcontext()
        reading = step_outputs(plan, setup.model, self.rows.train, teacher, self._recalled())
        freeze = plan.client.freeze
        now = self.task.server_round
        frozen = [k for k in trainables.named_parameters() if freeze and freeze.frozen(k, now)]
        with doing(TRAINING), recorder, reading as outputs, beside as own_step:
            run = LocalRun(
                setup.model,
                trainables,
                recorder,
                joint.task if joint else setup.task,
                _on(device, _replaced(self.task.state, started)),
                setup.shape.top_k,
                [(term, _on(device, kept)) for term, kept in parts.terms()],
                signals_of(_on(device, self.task.broadcast)),
                own_step,
                gradient,
                plan.client.loss,
                outputs,
                frozen,
                plan.client.logits,
            )
            rows, config = self.rows.train, self.config.train
            if (level := ExampleLevel.of(self.config)) is not None:
                result = train_by_example(run, rows, config, level, factor)
            else:
                result = train(run, rows, config, self._seed, factor)
        return result, recorder.stats(trainables.trained)

    def _train_own(self, own: OwnModel) -> None:
        """Train what is personal beside the received model, which is put back for it."""
        write_state(self.setup.model, self.setup.layers, self.task.state)
        factor = self._learning_rate()
        with doing(TRAINING):
            own.train(self.setup.model, self.rows.train, self.config.train, self._seed, factor)

    def _learning_rate(self) -> Factor:
        config = self.config.train
        steps = _num_steps(self.config, len(self.rows.train))
        rounds = self.config.num_server_rounds
        return learning_rate_factor(config, self.task.server_round, rounds, steps)

    def _metrics(self, result: TrainResult, client: LocalClient) -> dict[str, float]:
        metrics = {
            "train-loss": result.loss,
            "num-steps": result.num_steps,
            "num-truncated": self.rows.train.num_cut,
        }
        if self.plan.client.select is not None:
            metrics[EXPERT_BUDGET] = self.plan.client.select.budget(client)
        if self._loads_chosen:
            metrics["experts-held"] = len(self.task.state.experts)
        return metrics

    def _own_metrics(self, own: OwnModel | None) -> dict[str, float]:
        if own is None:
            return {}
        size = self.config.train.per_device_eval_batch_size
        return own.metrics(self.setup.model, self.rows.train, self.rows.test, size)

    @property
    def _loads_chosen(self) -> bool:
        return self.config.model.experts_in_memory == "chosen"

    @property
    def _stacked(self) -> bool:
        """Whether experts are trained as stacks, which no part that looks at single ones can be."""
        client, measured = self.plan.client, self.plan.measured
        looks = (
            isinstance(client.select, InBatch) or bool(client.freeze) or self.plan.needs_gradient
        )
        looks = looks or any(isinstance(part, OfInputs) for part in measured)
        looks = looks or ExampleLevel.of(self.config) is not None
        return pays_on(self.setup.model.device) and not looks

    @property
    def _seed(self) -> int:
        return client_seed(self.config.seed, self.task.server_round, self.node.client)

    def _num_partitions(self) -> int:
        own_file = self.node.data_path is not None
        return 0 if own_file else self.node.num_partitions or 0

    def _score(self, task: Task, rows: Sequence[Row]) -> Score:
        size = self.config.train.per_device_eval_batch_size
        with self.watch.phase("evaluate"), doing(SCORING):
            return evaluate(self.setup.model, task, rows, size)

    def _usage(self, max_examples: int) -> RoutingStats:
        """Measure the model's routing on drawn examples; a file's head may be one class only."""
        rows, setup = self.rows.train, self.setup
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed))
        drawn = [rows[i] for i in sorted(order[:max_examples].tolist())]
        with all_experts(setup.model, setup.layers), RoutingRecorder(setup.layers) as recorder:
            setup.model.eval()
            size = self.config.train.per_device_eval_batch_size
            for start in range(0, len(drawn), size):
                batch = setup.task.collate(drawn[start : start + size], setup.model.device)
                recorder.mask(batch.attention_mask, batch.decoder_mask)
                setup.task.score(setup.model, batch)
            return recorder.stats(None)


def evaluate_client(config: RunConfig, node: Node, task: TrainTask) -> ClientScore:
    """Score the received model on this node's own test examples; zero items if it has none.

    Raises:
        ConfigError: the run promises privacy, and a score has no noise and no mask.
        RefusedError: the node's policy lets no score leave.
    """
    if promised := config.privacy.promised:
        raise ConfigError(f"{promised}: no score of this node's rows leaves it")
    if (policy := node_policy()) is not None:
        policy.check_leaves("scores")
    with doing(round_note(task.server_round)), one_client(config.seed, config.train.threads):
        with doing(LOADING):
            setup = _load(config, node, task)
        check_base(setup, task.base_fingerprint)
        rows = client_rows(config, node, task, setup)
        if (policy := node_policy()) is not None:
            policy.check_round(len(rows.train), 0, {})
        write_state(setup.model, setup.layers, task.state)
        size = config.train.per_device_eval_batch_size
        prefix = prefix_once(config, setup, rows, task.run_key, node.client)
        with prefix, doing(SCORING):
            score = evaluate(setup.model, setup.task, rows.test, size)
        return ClientScore(node.client, score.loss, score.correct, score.items)


def _score_metrics(prefix: str, score: Score) -> dict[str, float]:
    """Name a score's means; a client without test examples has none."""
    if not score.items:
        return {}
    return {
        f"{prefix}loss": score.mean_loss,
        f"{prefix}accuracy": score.accuracy,
        "num-test-items": score.items,
    }


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _batch_selection(
    trainables: Trainables, part: Select | None, client: LocalClient
) -> OnRoute | None:
    """Return what freezes experts between a layer's router and its experts, batch by batch."""
    if not isinstance(part, InBatch):
        return None

    def select(layer: int, probs: Tensor, chosen: Tensor) -> None:
        routed = torch.zeros(probs.shape[1], dtype=torch.bool, device=probs.device)  # [E]
        routed[chosen.reshape(-1)] = True
        trainables.train_only(layer, part.choose(probs, routed, client))

    return select


def _replaced(received: ModelState, started: ModelState) -> dict[str, Tensor]:
    """Return the received values of the tensors that local training starts from others."""
    start = dict(started.named())
    return {key: tensor for key, tensor in received.named() if start[key] is not tensor}


def _from_received(changes: ModelState, started: ModelState, received: ModelState) -> ModelState:
    """Turn local − started into local − received; the same object where nothing was replaced."""
    start = dict(started.named())
    total = ModelState()
    moved = _replaced(received, started)
    for key, change in changes.named():
        total.insert(key, change + (start[key] - moved[key]) if key in moved else change)
    return total
