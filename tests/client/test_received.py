"""States that travel in parts: both sides name them alike, and a lost file costs bytes only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fedmoe_app import ModelState
from fedmoe_app.client.received import CannotBuildError, complete
from fedmoe_app.compare.in_process import task_identity
from fedmoe_app.server.sync import DeltaSync
from fedmoe_app.server.transport import Reply
from fedmoe_app.wire.records import (
    decode_task,
    encode_score,
    encode_state,
    encode_task,
    record_bytes,
)
from fedmoe_app.wire.update import ClientScore
from tests.toy import assert_same
from tests.wire.large import large_state

KEY, NODE = "cd" * 16, 7


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))


class Server:
    """The server's half, with one node."""

    def __init__(self, codec: str = "fp32", changed_only: bool = True) -> None:
        self.sync = DeltaSync(changed_only, codec)

    def send(self, state: ModelState) -> RecordDict:
        task = encode_task(encode_state(state), 1, run_key=KEY)
        with task_identity():
            (message,), sizes = self.sync.address(task, [NODE], "train")
        assert sizes == {NODE: record_bytes(message.content)}
        return message.content

    def hear(self, held: str, sent: RecordDict) -> None:
        from flwr.app import Message

        with task_identity():
            message = Message(sent, NODE, "train")
            message.metadata.__dict__["_message_id"] = "1"
            reply = Message(encode_score(ClientScore(0, 0.0, 0, 0), held), reply_to=message)
        self.sync.learn(Reply(NODE, reply, 0.0))


def one_expert_changed() -> ModelState:
    state = large_state()
    state.experts[1, 2]["up"] = state.experts[1, 2]["up"] + 1
    return state


def test_only_what_changed_is_sent_and_the_node_puts_it_together() -> None:
    server = Server()
    first = server.send(large_state())
    whole, held = complete(first, client=3)
    assert_same(decode_task(whole).state, large_state())
    server.hear(held, first)
    second = server.send(one_expert_changed())
    assert list(second.array_records["arrays"]) == ["layers.1.experts.2.up"]
    rebuilt, _ = complete(second, client=3)
    assert_same(decode_task(rebuilt).state, one_expert_changed())
    assert list(second.array_records["arrays"]) == ["layers.1.experts.2.up"]  # shared: left alone


def test_a_lost_or_damaged_file_is_found_out(tmp_path: Path) -> None:
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"x")):
        server = Server()
        first = server.send(large_state())
        server.hear(complete(first, client=3)[1], first)
        second = server.send(one_expert_changed())
        for path in tmp_path.rglob("received/*"):
            damage(path)
        with pytest.raises(CannotBuildError, match="cannot be put together"):
            complete(second, client=3)


def test_all_is_sent_to_a_node_that_holds_nothing_or_something_unknown() -> None:
    for held in ("", "0" * 32, "../../etc"):
        server = Server()
        first = server.send(large_state())
        server.hear(held, first)
        assert len(server.send(large_state()).array_records["arrays"]) == len(
            first.array_records["arrays"]
        )


def test_full_downloads_leave_nothing_on_the_disk(tmp_path: Path) -> None:
    sent = Server(changed_only=False).send(large_state())
    assert complete(sent, client=3)[1] == ""
    assert not list(tmp_path.rglob("received"))


@pytest.mark.parametrize(("codec", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_values_may_come_down_in_16_bits(codec: str, dtype: torch.dtype) -> None:
    sent = Server(codec).send(large_state())
    received = dict(decode_task(complete(sent, client=3)[0]).state.named())
    for name, tensor in large_state().named():
        assert torch.equal(received[name], tensor.to(dtype).float())
    assert record_bytes(sent) < record_bytes(Server().send(large_state()))
