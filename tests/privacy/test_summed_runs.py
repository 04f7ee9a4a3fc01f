"""Whole runs of masked sums: equal to the plain ones, whoever is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from safetensors.torch import load_file

from fedmoe_app import ConfigError, read_metrics, run_in_process
from fedmoe_app.compare.in_process import InProcessGrid
from fedmoe_app.privacy.member import SumError
from fedmoe_app.server.collect import Collected
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.server.summed import MaskedSums
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.replies import seal
from tests.homes import kept_files
from tests.privacy.conftest import short_run
from tests.toy import TOPICS, write_topics

CLIENTS = 5
# All experts are open, and a client's examples are its weight.
SUMS = {"privacy.secure-sum": True, "privacy.weight-unit": 1, "min-clients": 3}
EXACT = SUMS | {"privacy.min-trainers": 2}


def run(folder: Path, clients: int = CLIENTS, **overrides: Any) -> Path:
    return run_in_process(short_run(folder, **overrides), clients)


def states(results: Path) -> list[dict[str, torch.Tensor]]:
    folders = sorted((results / "checkpoints").iterdir())
    return [load_file(folder / "state.safetensors") for folder in folders]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@contextmanager
def lost(
    client: int, kind: str, number: int | None = None, in_round: int | None = None
) -> Iterator[None]:
    """Let a client fail at every message of a kind, or at those about one of the two sums."""
    original = InProcessGrid._answer

    def answer(self: InProcessGrid, message: Message) -> Message:
        metadata = message.metadata
        about = message.content.config_records.get("sum", {}).get("number")
        is_it = number is None or about == number
        if in_round is not None:
            is_it = is_it and Question.of(message.content).server_round == in_round
        if metadata.dst_node_id == 1000 + client and metadata.message_type == kind and is_it:
            return Message(Error(2, "gone"), reply_to=message)
        return original(self, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessGrid, "_answer", answer)
        yield


@contextmanager
def hostile(client: int, kind: str, change: Callable[[RecordDict], None]) -> Iterator[None]:
    """Let a client change what it sends."""
    original = InProcessGrid._answer

    def answer(self: InProcessGrid, message: Message) -> Message:
        reply = original(self, message)
        if message.metadata.dst_node_id == 1000 + client and message.metadata.message_type == kind:
            change(reply.content)
            seal(reply.content)
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessGrid, "_answer", answer)
        yield


def no_keys(content: RecordDict) -> None:
    content["sum"] = ConfigRecord({"keys": [1, 2, 3]})


def strange_keys(content: RecordDict) -> None:
    content["sum"] = ConfigRecord({"keys": [b"x", b"y", b"z"]})


def no_shares(content: RecordDict) -> None:
    content["sum"] = ConfigRecord({"nodes": ["1000"], "values": [b"x"]})


def short_vector(content: RecordDict) -> None:
    content["masked"] = ArrayRecord({"vector": raw_array(b"1234")})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("query.sum_keys", no_keys),
        ("query.sum_keys", strange_keys),
        ("query.sum_shares", no_shares),
        ("train", short_vector),
        ("query.sum_values", short_vector),
        ("query.sum_unmask", no_shares),
    ],
)
def test_a_client_that_breaks_the_protocol_is_left_out(
    kind: str, change: Callable[[RecordDict], None], tmp_path: Path
) -> None:
    with hostile(4, kind, change):
        results = run(tmp_path, **SUMS | {"num-server-rounds": 1})
    line = read_metrics(results)[1]
    assert line["status"] == "ok"
    assert {failure["who"] for failure in line["failures"]} == {"client 4"}
    assert any("reply rejected" in failure["reason"] for failure in line["failures"])


@pytest.mark.parametrize("scheme", ["fedavg", "fedprox", "fedmoe"])
def test_the_model_is_that_of_the_plain_sums(scheme: str, tmp_path: Path, home: Path) -> None:
    keys = {"scheme": scheme, "num-server-rounds": 1, "fedmoe.experts-per-client": 8}
    plain = run(tmp_path, **keys | {"min-clients": 3})
    masked = run(tmp_path, **EXACT | keys)
    line = read_metrics(masked)[1]
    before, after = states(plain)
    found = states(masked)[1]
    moved = [n for n in after if not torch.equal(after[n], before[n])]
    open_ones = [n for n in moved if not torch.equal(found[n], before[n])]
    assert furthest({n: found[n] for n in open_ones}, after) < 1e-6
    # An expert that one client trained is as it was.
    closed = {name.rpartition(".")[0].rpartition(".")[0] for name in set(moved) - set(open_ones)}
    assert line["secure_sum"]["closed_experts"] == len(closed)
    assert line["secure_sum"]["open_experts"] > 8
    assert kept_files(home) == []


def test_nothing_but_sums_is_written_down_and_bytes_are(tmp_path: Path) -> None:
    results = run(tmp_path, **SUMS)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 3
    for line in lines[1:]:
        assert line["num_clients"] == line["secure_sum"]["members"] == CLIENTS
        assert line["clients"] == []
        assert line["train_loss"] is None
        assert line["routing"] == {"count": [], "trained": []}
        steps = line["secure_sum"]["bytes"]
        assert steps.keys() == {"agreement", "counts", "values"}
        assert line["bytes_up"] == sum(up for up, _ in steps.values())
        assert line["bytes_down"] >= sum(down for _, down in steps.values())
    counters = json.loads(
        (max((results / "checkpoints").iterdir()) / "checkpoint.json").read_text()
    )["counters"]
    assert counters["sizes"] == counters["tests"] == {}
    assert 'class="state complete"' in (results / "report.html").read_text()


def test_one_seed_gives_one_model(tmp_path: Path) -> None:
    keys = SUMS | {"num-server-rounds": 1}
    one, other = (states(run(tmp_path, **keys))[-1] for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", ["query.sum_keys", "query.sum_shares", "train"])
def test_a_client_lost_before_its_counts_is_left_out(kind: str, tmp_path: Path) -> None:
    """As if it had never been asked; of the three kinds, `train` leaves masks to be taken off."""
    keys = {"num-server-rounds": 1}
    with lost(4, "train"):
        plain = run(tmp_path, **keys | {"min-clients": 3})
    with lost(4, kind):
        masked = run(tmp_path, **EXACT | keys)
    line = read_metrics(masked)[1]
    assert line["num_clients"] == 4
    assert [failure["who"] for failure in line["failures"]] == ["client 4"]
    found, wanted, before = states(masked)[1], states(plain)[1], states(plain)[0]
    open_ones = {n: t for n, t in found.items() if not torch.equal(t, before[n])}
    assert len(open_ones) > 10
    assert furthest(open_ones, wanted) < 1e-6


def test_a_client_lost_between_the_sums_counts_as_unchanged(tmp_path: Path) -> None:
    """Dense tensors: Σ over four of five clients, divided by the weights of all five."""
    keys = {"num-server-rounds": 1, "data.partition": "iid", "data.max-train-examples": 45}
    with lost(4, "train"):
        plain = run(tmp_path, **keys | {"min-clients": 3})
    sizes = {client["num_examples"] for client in read_metrics(plain)[1]["clients"]}
    assert len(sizes) == 1
    with lost(4, "query.sum_values"):
        masked = run(tmp_path, **SUMS | keys)
    assert read_metrics(masked)[1]["num_clients"] == 4
    (before, after), found = states(plain), states(masked)[1]
    dense = [name for name in found if not name.startswith("layers.")]
    for name in dense:
        wanted = before[name] + 0.8 * (after[name] - before[name])
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=2e-6)


def test_a_client_lost_while_masks_are_taken_off_does_no_harm(tmp_path: Path) -> None:
    keys = {"num-server-rounds": 1}
    whole = run(tmp_path, **SUMS | keys)
    with lost(4, "query.sum_unmask", number=1):
        masked = run(tmp_path, **SUMS | keys)
    assert furthest(states(masked)[1], states(whole)[1]) == 0


def test_too_few_clients_make_a_failed_round_that_says_why(tmp_path: Path) -> None:
    with lost(4, "train"), lost(3, "train"), pytest.raises(RunFailedError) as error:
        run(tmp_path, **SUMS | {"max-failed-rounds": 1})
    assert "3 of 5 alive: at least 4" in str(error.value) or "answers" in str(error.value)


def test_few_trainers_close_an_expert(tmp_path: Path) -> None:
    keys = {"scheme": "fedmoe", "fedmoe.experts-per-client": 1, "num-server-rounds": 1}
    results = run(tmp_path, **SUMS | keys | {"privacy.min-trainers": 5})
    figures = read_metrics(results)[1]["secure_sum"]
    before, after = states(results)
    moved = {
        tuple(name.split(".")[1:4:2])
        for name in after
        if ".experts." in name and not torch.equal(before[name], after[name])
    }
    assert len(moved) == figures["open_experts"]
    assert figures["closed_experts"] > 0


def test_the_head_in_closed_form_is_that_of_the_plain_sums(tmp_path: Path) -> None:
    keys = {"head.closed-form": "before", "num-server-rounds": 1, "min-clients": 3}
    plain = run(tmp_path, **keys)
    masked = run(tmp_path, **SUMS | keys)
    mine, theirs = states(masked)[0], states(plain)[0]
    heads = [name for name in mine if name.startswith(("score", "classifier"))]
    assert heads
    for name in heads:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-6)


@contextmanager
def state_lost(times: int) -> Iterator[None]:
    """Let the server lose what came of its first masked sums, as one that crashes then."""
    original, left = MaskedSums.round, [times]

    def round_(self: MaskedSums, *arguments: Any) -> Collected:
        found = original(self, *arguments)
        if left[0]:
            left[0] -= 1
            raise SumError("the server crashed")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedSums, "round", round_)
        yield


def own_rows(folder: Path) -> list[dict[str, Any]]:
    found = []
    for number in range(CLIENTS):
        path = write_topics(folder / f"own-{number}.jsonl", 6 + number)
        found.append({"partition-id": number, "data-path": str(path)})
    return found


def own_run(folder: Path, **overrides: Any) -> Path:
    keys = {"data.source": "nodes", "data.label-names": ", ".join(TOPICS)}
    keys |= {"num-server-rounds": 2, "max-failed-rounds": 2}
    return run_in_process(short_run(folder, **SUMS | keys | overrides), CLIENTS, own_rows(folder))


def test_a_sum_is_repeated_over_the_same_clients_only(tmp_path: Path, home: Path) -> None:
    """With a client and without it, the two sums would differ by what that client changed."""
    with state_lost(1):
        again = own_run(tmp_path)
    assert [line["status"] for line in read_metrics(again)] == ["ok", "failed", "ok"]
    assert (home / "node" / "sums.db").stat().st_mode & 0o777 == 0o600
    with state_lost(1), lost(4, "query.sum_keys", in_round=2), pytest.raises(RunFailedError) as why:
        own_run(tmp_path)
    assert "let other clients into the same sum before" in str(why.value)


def test_a_sum_that_nobody_could_read_is_repeated_over_fewer(tmp_path: Path) -> None:
    """Three of five are too few: no node gave out a share, so that no sum was known."""
    with (
        lost(4, "train", in_round=1),
        lost(3, "train", in_round=1),
        lost(4, "query.sum_keys", in_round=2),
    ):
        results = own_run(tmp_path)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok", "failed", "ok"]
    assert lines[2]["num_clients"] == CLIENTS - 1


def test_a_second_run_from_one_start_is_over_the_same_clients_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its key, its seed and its learning rate: each node's update would be the same."""
    assert all(line["status"] == "ok" for line in read_metrics(own_run(tmp_path))[1:])
    own_run(tmp_path, **{"num-server-rounds": 1})
    fewer = {"num-server-rounds": 1, "max-failed-rounds": 1, "train.learning-rate": 1e-4}
    with lost(4, "query.sum_keys"), pytest.raises(RunFailedError) as why:
        own_run(tmp_path, **fewer)
    assert "let other clients into the same sum before" in str(why.value)
    policy = tmp_path / "policy.toml"
    monkeypatch.setenv("FEDMOE_POLICY", str(policy))
    for line, reason in (("max-sum-lists = 1", "one more list of clients"), ("", "")):
        policy.write_text(f'apps = []\nsources = ["nodes"]\nsame-start = "allowed"\n{line}\n')
        policy.chmod(0o600)
        with lost(4, "query.sum_keys"):
            if not reason:
                own_run(tmp_path, **fewer)
                continue
            with pytest.raises(RunFailedError) as why:
                own_run(tmp_path, **fewer)
            assert reason in str(why.value)


def test_a_client_may_go_from_round_to_round(tmp_path: Path) -> None:
    """Another state is another sum, over whomever."""
    with lost(4, "query.sum_keys", in_round=2):
        results = own_run(tmp_path)
    assert [line["num_clients"] for line in read_metrics(results)[1:]] == [5, 4]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scheme": "fcmoe"}, 'scheme = "fcmoe": its .* no mean by examples; choose fedavg'),
        ({"scheme": "fedalign"}, "no mean by examples"),
        ({"scheme": "fedadam"}, "numbers of single clients"),
        ({"wire.codec": "int8"}, "no codec may round"),
        ({"min-clients": 2}, "a sum of two"),
        ({"rounds": "buffered"}, 'rounds = "buffered"'),
    ],
)
def test_what_sums_cannot_serve_is_refused(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **SUMS | keys)
