"""What a client sends through a lossy codec, and what it keeps of what was lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmoe_app import ModelState
from fedmoe_app.client.encode import encode_reply
from fedmoe_app.wire.codecs import Offer
from fedmoe_app.wire.records import ProtocolError, TrainTask, UpdateSpec, decode_update
from tests.wire.large import large_state, large_update

KEY = "ab" * 16
SPEC = UpdateSpec.of(large_state(), region_size=4, codecs=("topk+int4", "int8", "fp32"))


def send(
    server_round: int, codec: str = "topk+int4", trained: list[tuple[int, int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Send one round's update; return what was trained, what arrives, and the metrics."""
    task = TrainTask(server_round, ModelState(), run_key=KEY, offer=Offer((codec,), 0.1))
    update = large_update(server_round, trained or [(0, 1), (1, 2)])
    arrived = decode_update(encode_reply(update, task, seed=5), SPEC)
    return dict(update.changes.named()), dict(arrived.changes.named()), arrived.metrics


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))


def test_nothing_is_lost_for_good() -> None:
    """Sum of what arrived + the residual = sum of what was trained."""
    rounds = [send(server_round) for server_round in range(1, 6)]
    assert [metrics["residual-round"] for _, _, metrics in rounds] == [0, 1, 2, 3, 4]
    name = "layers.0.experts.1.up"
    trained = torch.stack([sent[name] for sent, _, _ in rounds]).cumsum(0)
    arrived = torch.stack([got[name] for _, got, _ in rounds]).cumsum(0)
    left = [float((a - b).norm() / b.norm()) for a, b in zip(arrived, trained, strict=True)]
    assert left[-1] < left[0]
    # The next residual is exactly what has not arrived.
    sent, got, _ = send(6)
    residual = trained[-1] - arrived[-1]
    next_sent, next_got, _ = send(7)
    total = residual + sent[name] - got[name] + next_sent[name]
    kept = next_got[name] != 0
    torch.testing.assert_close(next_got[name][kept], total[kept], rtol=0.3, atol=2e-4)


def test_an_expert_that_is_not_trained_keeps_its_residual() -> None:
    first, got, _ = send(1)
    send(2, trained=[(0, 1)])
    third, arrived, _ = send(3)
    name = "layers.1.experts.2.bias"  # a vector: always sent, in fp16
    waiting = first[name] - got[name]
    torch.testing.assert_close(arrived[name], (third[name] + waiting).half().float())


def test_a_lost_file_costs_memory_never_the_round(tmp_path: Path) -> None:
    send(1)
    (file,) = tmp_path.rglob("residuals/*.safetensors")
    file.write_bytes(b"broken")
    assert send(2)[2]["residual-round"] == 0


def test_the_same_round_gives_the_same_bytes() -> None:
    task = TrainTask(4, ModelState(), run_key=KEY, offer=Offer(("int8",)))
    replies = [encode_reply(large_update(), task, seed) for seed in (5, 5, 6)]
    coded = [reply.array_records["arrays"]["coded"].data for reply in replies]
    assert coded[0] == coded[1] != coded[2]


def test_a_node_may_choose_and_must_know_a_codec() -> None:
    task = TrainTask(1, ModelState(), run_key=KEY, offer=Offer(("topk+int4", "fp32")))
    assert decode_update(encode_reply(large_update(), task, 5, "fp32"), SPEC).codec == "fp32"
    task = TrainTask(1, ModelState(), run_key=KEY, offer=Offer(("zip",)))
    with pytest.raises(ProtocolError, match="offers the codecs zip"):
        encode_reply(large_update(), task, 5)
