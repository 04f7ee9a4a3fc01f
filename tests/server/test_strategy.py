"""The strategy against real Flower messages: toy clients answer, fail, lie or stay silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedmoe_app import (
    Block,
    BlockUpdates,
    FedAvg,
    Mean,
    ModelShape,
    Now,
    Reply,
    Scheme,
    Server,
    Step,
    Weighted,
)
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.moe.state import Tensors
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.collect import decode_scores
from fedmoe_app.server.rounds import RoundLoop, RunFailedError
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.transport import NotEnoughClientsError, short_reason
from fedmoe_app.wire.records import (
    Question,
    decode_state,
    decode_task,
    encode_number,
    encode_score,
    encode_state,
    encode_task,
    encode_update,
    record_bytes,
    seal,
    stamp,
)
from fedmoe_app.wire.update import ClientScore
from fedmoe_app.wire.versions import CANNOT_BUILD
from tests.toy import Records, toy_state, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]
ITEMS = 4  # that each client has for testing
BROKEN_SCORER = 9  # a client that replies to an evaluation with nothing
Answer = Callable[[int, int], RecordDict]  # (client, round) -> reply


def toy_app(answer: Answer) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        task = decode_task(message.content)
        content = answer(client, task.server_round)
        return Message(stamp(content, task.question), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client == BROKEN_SCORER:
            return Message(RecordDict(), reply_to=message)
        score = ClientScore(client, loss=2.0 * client, correct=client, items=ITEMS)
        content = encode_score(score, question=Question.of(message.content))
        return Message(content, reply_to=message)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        content = encode_number(client, Question.of(message.content))
        return Message(content, reply_to=message)

    return app


class Run:
    """A run of toy clients, in the given order of node ids."""

    def __init__(
        self,
        answer: Answer,
        clients: list[int],
        rounds: int = 1,
        limits: Limits | None = None,
        scheme: Scheme | None = None,
        fails: bool = False,
        registry: ClientRegistry | None = None,
    ) -> None:
        self.reports = Records()
        limits = limits or Limits(min_clients=1, wait_for_clients=0)
        self.loop = RoundLoop(MoEStrategy(scheme or FedAvg(), limits, registry=registry))
        grid = InProcessGrid(toy_app(answer), {}, [{"partition-id": c} for c in clients])
        with task_identity(), pytest.raises(RunFailedError) if fails else nullcontext():
            arrays = encode_state(toy_state())
            self.loop.run(grid, arrays, rounds, timeout=5, callbacks=[self.reports])

    @property
    def head(self) -> list[float]:
        return decode_state(self.loop.arrays).dense["head.weight"].tolist()


def good(client: int, server_round: int) -> RecordDict:
    update = toy_update(client, 1 + client, 1.0 + client, ALL)
    metrics = update.metrics | {"num-test-items": ITEMS}
    return encode_update(replace(update, metrics=metrics))


def test_a_round_folds_all_replies() -> None:
    run = Run(good, [0, 1])
    # 1 + (1/3)·1 + (2/3)·2
    assert run.head == pytest.approx([1 + 5 / 3] * 2)
    assert run.reports[1].aggregated
    assert [u.client for u in run.reports[1].updates] == [0, 1]


def test_the_order_of_nodes_changes_nothing() -> None:
    assert Run(good, [0, 1, 2, 3]).head == Run(good, [3, 1, 0, 2]).head


def test_clients_score_the_global_model_when_the_server_has_no_test_set() -> None:
    report = Run(good, [1, 3]).reports[1]
    assert report.evaluation is not None
    assert report.evaluation["loss"] == pytest.approx((2 + 6) / 8)
    assert report.evaluation["accuracy"] == pytest.approx((1 + 3) / 8)


def test_a_score_that_makes_no_sense_is_rejected() -> None:
    report = Run(good, [1, BROKEN_SCORER]).reports[1]
    assert report.evaluation is not None
    assert report.evaluation["accuracy"] == pytest.approx(1 / 4)
    (reason,) = report.failures.values()
    assert reason == "score rejected: records [], expected metrics, update"


def test_scores_of_the_same_partition_are_all_rejected() -> None:
    with task_identity():
        asked = [Message(RecordDict(), node, "evaluate") for node in (1, 2, 3)]
        scores = [ClientScore(4, 1.0, 1, 2), ClientScore(4, 9.0, 0, 2), ClientScore(0, 1.0, 2, 2)]
        replies = [
            Message(encode_score(score), reply_to=message)
            for score, message in zip(scores, asked, strict=True)
        ]
        for order in (replies, replies[::-1]):
            kept, rejected = decode_scores(order, ClientRegistry(seed=0))
            assert kept == [scores[2]]
            why = "score rejected: 2 nodes have partition-id = 4 (1, 2); give each its own"
            assert rejected == {"node 1": why, "node 2": why}


def test_a_client_that_raises_is_left_out() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        if client == 1:
            raise ValueError("partition 1 is empty")
        return good(client, server_round)

    run = Run(answer, [0, 1, 2])
    assert [u.client for u in run.reports[1].updates] == [0, 2]
    assert list(run.reports[1].failures.values()) == ["partition 1 is empty"]
    assert run.head == pytest.approx([1 + 1 / 4 * 1 + 3 / 4 * 3] * 2)


def test_an_invalid_reply_is_rejected_with_its_reason_and_counted() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        records = good(client, server_round)
        if client == 0:
            records.metric_records["metrics"]["num-examples"] = -5
            seal(records)
        return records

    run = Run(answer, [0, 1])
    assert [u.client for u in run.reports[1].updates] == [1]
    (reason,) = run.reports[1].failures.values()
    assert reason == "reply rejected: num-examples = -5: must be an integer of 1 or more"


def test_nodes_with_the_same_partition_are_all_rejected_in_any_order() -> None:
    """Which of them is right cannot be told; the first to arrive must not decide."""

    def answer(client: int, server_round: int) -> RecordDict:
        return good(0 if client == 1 else client, server_round)

    for order in ([0, 1, 2], [2, 1, 0]):
        run = Run(answer, order)
        assert [u.client for u in run.reports[1].updates] == [2]
        failures = run.reports[1].failures
        two = [f"node {1000 + order.index(client)}" for client in (0, 1)]
        assert all("2 nodes have partition-id = 0 (" in failures[node] for node in two)
        assert not any(who.startswith("client 0") for who in failures)


def test_a_node_that_splits_the_data_otherwise_is_rejected() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        records = good(client, server_round)
        records.metric_records["metrics"]["num-partitions"] = 4 if client == 1 else 3
        seal(records)
        return records

    report = Run(answer, [0, 1, 2]).reports[1]
    assert [u.client for u in report.updates] == [0, 2]
    assert "num-partitions = 4, but most nodes have 3" in report.failures["client 1"]


def test_bytes_are_those_of_all_messages_evaluation_included() -> None:
    run = Run(good, [0, 1])
    report = run.reports[1]
    whole = encode_task(encode_state(toy_state()), 1)
    whole.config_records["task"].update({"version": "0" * 32, "base-version": ""})
    down = record_bytes(whole)
    assert report.bytes_down_to == {0: down, 1: down}
    # Two messages to train, two to evaluate the folded state, which is as large.
    assert report.bytes_down == 4 * down
    scores = sum(record_bytes(encode_score(ClientScore(c, 2.0 * c, c, 4))) for c in (0, 1))
    assert report.bytes_up == {c: record_bytes(good(c, 1)) for c in (0, 1)}
    assert report.bytes_up_total == sum(report.bytes_up.values()) + scores


class Nan(Weighted):
    def weights(self, updates: BlockUpdates) -> Tensor:
        return torch.full((len(updates.members),), math.nan)


class NanOfOne(Mean):
    def weight(self, reply: Reply, block: Block) -> float:
        return math.nan


class Overwrites(Step):
    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        now.values["head.weight"].zero_()
        return dict(now.change), {}


class Divides(FedAvg):
    """A user's scheme with 0/0 in its weights."""

    def server(self, model: ModelShape) -> Server:
        return Server(dense=Nan())


class DividesAtOnce(FedAvg):
    """The same in a rule whose sums grow while the replies come."""

    def server(self, model: ModelShape) -> Server:
        return Server(dense=NanOfOne())


class Writes(FedAvg):
    """A user's scheme that writes to the model."""

    def server(self, model: ModelShape) -> Server:
        return Server(steps=(Overwrites(),))


def test_a_fold_with_nan_fails_the_round_and_keeps_the_model() -> None:
    run = Run(good, [0, 1], scheme=Divides(), fails=True)
    reason = run.reports[1].failures["round"]
    assert "folding gave 2 NaN or infinite values of 2 in head.weight" in reason
    assert run.head == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (DividesAtOnce(), "NanOfOne.weight: returned nan for client 0, dense head.weight"),
        (Writes(), "Overwrites.step: wrote in place to now.values (head.weight)"),
    ],
)
def test_a_fault_of_a_part_fails_the_round_and_keeps_the_model(
    scheme: Scheme, expected: str
) -> None:
    run = Run(good, [0, 1], scheme=scheme, fails=True)
    reason = run.reports[1].failures["round"]
    assert expected in reason
    assert "the global model stays as it was" in reason
    assert run.head == [1.0, 1.0]


def fail_in(rounds: set[int]) -> Answer:
    def answer(client: int, server_round: int) -> RecordDict:
        if server_round in rounds:
            raise RuntimeError("out of memory")
        return good(client, server_round)

    return answer


def test_a_round_in_which_all_fail_is_reported_as_failed_and_keeps_the_model() -> None:
    run = Run(fail_in({2}), [0], rounds=3)
    assert [report.aggregated for report in run.reports] == [True, True, False, True]
    failed = run.reports[2]
    assert failed.evaluation is None
    assert not failed.updates
    assert "0 usable replies of 1 clients asked" in failed.failures["round"]
    assert run.head == [3.0, 3.0]  # two good rounds of +1


def test_too_many_failed_rounds_stop_the_run() -> None:
    with pytest.raises(RunFailedError, match=r"2 round\(s\) in a row failed.*out of memory"):
        Run(fail_in({2, 3, 4}), [0], rounds=9)


def test_a_run_without_one_good_round_fails() -> None:
    with pytest.raises(RunFailedError, match="out of memory"):
        Run(fail_in({1}), [0], rounds=1)


def test_fewer_replies_than_min_clients_fail_the_round() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        if client == 0 and server_round == 1:
            raise RuntimeError("lost")
        return good(client, server_round)

    run = Run(answer, [0, 1], rounds=2, limits=Limits(min_clients=2, wait_for_clients=0))
    assert [report.aggregated for report in run.reports] == [True, False, True]


@pytest.mark.parametrize("connected", [0, 1])
def test_too_few_nodes_stop_the_run_with_both_numbers(connected: int) -> None:
    limits = Limits(min_clients=2, wait_for_clients=0)
    with pytest.raises(NotEnoughClientsError, match=rf"{connected} of min-clients = 2 nodes"):
        Run(good, list(range(connected)), limits=limits)


def test_one_node_is_enough_if_the_config_says_so() -> None:
    assert Run(good, [4]).head == [6.0, 6.0]


def test_sampling_goes_by_client_number_and_seed() -> None:
    limits = Limits(min_clients=1, fraction_train=0.5, wait_for_clients=1)

    def drawn(order: list[int]) -> list[list[int]]:
        reports = Run(good, order, rounds=4, limits=limits).reports[1:]
        return [[u.client for u in report.updates] for report in reports]

    first = drawn([0, 1, 2, 3, 4, 5])
    assert first == drawn([5, 3, 1, 0, 2, 4])
    assert all(len(clients) == 3 for clients in first)
    assert len({tuple(clients) for clients in first}) > 1


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        (
            "<class 'x'>:<'\nException ClientAppException occurred. Message: bad value'>",
            "bad value",
        ),
        ("<class 'RuntimeError'>:<'client 2: out of memory'>", "client 2: out of memory"),
        ("Traceback\n  line\nValueError: too few", "ValueError: too few"),
        ("", "unknown error"),
    ],
)
def test_reasons_are_reduced_to_their_last_words(reason: str, short: str) -> None:
    assert short_reason(reason) == short


def test_a_node_that_lost_its_state_is_sent_all_of_it_in_the_same_round() -> None:
    asked: list[tuple[int, int]] = []
    toy = toy_app(good)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        asked.append((client, len(message.content.array_records["arrays"])))
        if client == 1 and asked.count((1, asked[-1][1])) == 1:
            raise ValueError(f"client 1: {CANNOT_BUILD}: OSError")
        return toy(message, context)

    reports, loop = Records(), RoundLoop(MoEStrategy(FedAvg(), Limits(2, wait_for_clients=0)))
    grid = InProcessGrid(app, {}, [{"partition-id": c} for c in (0, 1)])
    with task_identity():
        loop.run(grid, encode_state(toy_state()), 1, 5, lambda r, a: MetricRecord(), [reports])
    assert [client for client, _ in asked] == [0, 1, 1]
    assert [u.client for u in reports[1].updates] == [0, 1]
    assert not reports[1].failures
    assert reports[1].bytes_down == 3 * reports[1].bytes_down_to[0]
    # A whole state a message: they must not pile up while other nodes are drawn.
    assert not loop.strategy.sync._full


def test_rejected_replies_are_counted_by_kind() -> None:
    toy = toy_app(good)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = toy(message, context)
        client = int(context.node_config["partition-id"])
        metrics = reply.content.metric_records["metrics"]
        metrics.update({1: {"train-loss": 0.25}, 2: {"protocol": 2}}.get(client, {}))
        return reply

    reports, loop = Records(), RoundLoop(MoEStrategy(FedAvg(), Limits(1, wait_for_clients=0)))
    grid = InProcessGrid(app, {}, [{"partition-id": c} for c in (0, 1, 2)])
    with task_identity():
        loop.run(grid, encode_state(toy_state()), 1, 5, lambda r, a: MetricRecord(), [reports])
    assert reports[1].aggregated and reports[1].rejected == {"checksum": 1, "protocol": 1}
