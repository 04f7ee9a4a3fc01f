"""Buffered rounds with scripted arrival: who is waited for, what a late change counts."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict

from fedmoe_app import Combination, ConfigError, FCMoE, FedAlignMoE, FedAvg, HFedMoE, PFLMoE, Scheme
from fedmoe_app.compare.in_process import InProcessGrid, task_identity
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.schemes.feddyn import FedDyn
from fedmoe_app.server.buffered import Buffered, discount
from fedmoe_app.server.rounds import RoundLoop
from fedmoe_app.server.settings import Limits
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.wire.records import decode_state, encode_state, encode_update
from fedmoe_app.wire.versions import CANNOT_BUILD
from tests.server.test_strategy import ALL, Run, good, toy_app
from tests.toy import Records, toy_state, toy_update


class Scripted(InProcessGrid):
    """Hands replies over in the order of ``script``, client by client, one a call."""

    script: list[int]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = set(message_ids)
        for message_id, message in self._waiting.items():
            node = message.metadata.dst_node_id
            client = self._contexts[node].node_config["partition-id"]
            if message_id in ids and self.script and client == self.script[0]:
                self.script.pop(0)
                return super().pull_messages([message_id])
        return []


def same_weight(client: int, server_round: int) -> RecordDict:
    """Changes of 1 + client, the same number of examples for all."""
    return encode_update(toy_update(client, 10, 1.0 + client, ALL))


def buffered(size: int, scheme: Scheme | None = None) -> RoundLoop:
    limits = Limits(min_clients=1, wait_for_clients=0)
    return RoundLoop(MoEStrategy(scheme or FedAvg(), limits), Buffered(size))


def run(
    script: list[int], rounds: int, buffer_size: int = 2, clients: int = 3
) -> tuple[Records, list[float]]:
    reports, loop = Records(), buffered(buffer_size)
    grid = Scripted(toy_app(same_weight), {}, [{"partition-id": c} for c in range(clients)])
    grid.script = script
    with task_identity():
        loop.run(
            grid,
            encode_state(toy_state()),
            rounds,
            timeout=20,
            evaluate_fn=lambda server_round, arrays: None,
            callbacks=[reports],
        )
    return reports, decode_state(loop.arrays).dense["head.weight"].tolist()


def staleness(report: RoundRecord) -> dict[int, int]:
    return {client["client"]: client["staleness"] for client in report.line["clients"]}


def test_a_late_reply_counts_in_the_next_buffer_discounted() -> None:
    reports, head = run([0, 1, 2, 0], rounds=2)
    assert staleness(reports[1]) == {0: 0, 1: 0}
    assert staleness(reports[2]) == {0: 0, 2: 1}
    # (1 + 2)/2, then (1 + 3/√2)/2
    assert head == pytest.approx([1 + 1.5 + (1 + 3 / 2**0.5) / 2] * 2)


def test_a_client_that_was_late_gets_the_newest_state_at_once() -> None:
    # Round 2: client 2 (stale) answers, is asked again at once and answers before client 0.
    reports, _ = run([0, 1, 2, 2, 0, 1], rounds=3)
    assert staleness(reports[2]) == {0: 0, 2: 1}
    # Its second reply waited for the next buffer: it is one fold old there.
    assert staleness(reports[3]) == {1: 1, 2: 1}


def test_rounds_do_not_wait_for_a_node_that_never_answers() -> None:
    reports, _ = run([0, 1] * 3, rounds=3)
    assert [sorted(staleness(report)) for report in reports[1:]] == [[0, 1]] * 3
    assert [report.num_asked for report in reports[1:]] == [3, 2, 2]


def test_a_full_buffer_is_the_synchronous_round_bit_for_bit() -> None:
    _, head = run([2, 0, 1, 1, 2, 0], rounds=2, buffer_size=3)
    assert head == Run(same_weight, [0, 1, 2], rounds=2).head


def test_the_same_arrival_gives_the_same_model() -> None:
    script = [0, 1, 2, 2, 0, 1]
    assert run(list(script), 3)[1] == run(list(script), 3)[1]


def test_a_node_that_fails_is_not_asked_again_in_the_round() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        if client == 1:
            raise RuntimeError("out of memory")
        return good(client, server_round)

    reports, loop = Records(), buffered(3)
    grid = InProcessGrid(toy_app(answer), {}, [{"partition-id": c} for c in range(3)])
    with task_identity():
        loop.run(grid, encode_state(toy_state()), 1, timeout=5, callbacks=[reports])
    assert sorted(staleness(reports[1])) == [0, 2]
    assert list(reports[1].failures.values()) == ["out of memory"]


def test_a_node_that_can_never_put_its_state_together_fails() -> None:
    def answer(client: int, server_round: int) -> RecordDict:
        if client == 1:
            raise ValueError(f"client 1: {CANNOT_BUILD}: OSError")
        return good(client, server_round)

    reports, loop = Records(), buffered(2)
    grid = InProcessGrid(toy_app(answer), {}, [{"partition-id": c} for c in range(2)])
    with task_identity():
        loop.run(grid, encode_state(toy_state()), 1, timeout=60, callbacks=[reports])
    assert reports[1].num_asked == 3  # the second time with the whole state
    assert list(reports[1].failures) == ["client 1"]
    assert not loop.strategy.sync._full


@pytest.mark.parametrize(
    "scheme",
    [
        FedAlignMoE(),
        FCMoE(),
        HFedMoE(normalise=False),
        Combination(gates=FedAlignMoE()),
        FedDyn(),
    ],
    ids=["fedalign", "fcmoe", "hfedmoe", "combine", "feddyn"],
)
def test_schemes_that_cannot_be_late_are_refused(scheme: Scheme) -> None:
    with pytest.raises(ConfigError, match='rounds = "buffered".*rounds = "sync"'):
        buffered(2, scheme)


@pytest.mark.parametrize(
    "scheme",
    [FedAvg(), HFedMoE(), PFLMoE(), FCMoE(retention="none"), FedAlignMoE(gates="consistency")],
    ids=["fedavg", "hfedmoe", "pflmoe", "fcmoe", "fedalign"],
)
def test_the_others_are_taken(scheme: Scheme) -> None:
    buffered(2, scheme)


def test_the_discount() -> None:
    assert [discount(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
