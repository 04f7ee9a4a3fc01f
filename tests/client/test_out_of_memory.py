"""A client that runs out of memory: what the server is told, and that the next round has room."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmoe_app import (
    Client,
    LocalClient,
    LocalStep,
    ModelShape,
    Now,
    Once,
    Scheme,
    Server,
    Signal,
    Telling,
    WeightTerm,
    read_metrics,
    run_in_process,
)
from fedmoe_app.client.memory import (
    LOADING,
    TRAINING,
    doing,
    explain,
    is_out_of_memory,
    release,
    round_note,
)
from fedmoe_app.client_app import name_errors
from tests.conftest import flat_config

PEBIBYTE = 2**50


def failed_allocation() -> RuntimeError:
    """A real error of PyTorch's CPU allocator."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(PEBIBYTE, dtype=torch.uint8)
    return caught.value


def failed_array() -> MemoryError:
    with pytest.raises(MemoryError) as caught:
        np.empty(PEBIBYTE, dtype=np.uint8)
    return caught.value


def of_cuda() -> RuntimeError:
    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 23.64 GiB "
        "of which 8.75 MiB is free."
    )


def test_real_errors_say_how_much_was_needed() -> None:
    assert ", 1.05e+06 GiB more needed;" in (explain(failed_allocation()) or "")
    assert ", 1.00 PiB more needed;" in (explain(failed_array()) or "")
    assert ", 20.50 MiB more needed;" in (explain(of_cuda()) or "")
    assert (explain(MemoryError()) or "").startswith("out of memory; ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_other_ways_to_say_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert explain(error) is None
    with pytest.raises(RuntimeError, match=r"client 3: .*(mat1|memory)") as caught, name_errors(3):
        raise error
    assert caught.value.__cause__ is error


def test_the_message_names_client_round_phase_and_a_way_out() -> None:
    noted = (name_errors(3), doing(round_note(2)), doing(TRAINING))
    with pytest.raises(RuntimeError) as caught, noted[0], noted[1], noted[2]:
        raise of_cuda()
    message = str(caught.value)
    assert message.startswith(
        "client 3: out of memory in round 2 while training, 20.50 MiB more needed; lower "
        "train.per-device-train-batch-size and raise train.gradient-accumulation-steps"
    )
    assert len(message) < 400  # what the server keeps of a reason


def test_while_loading_the_advice_is_another() -> None:
    with pytest.raises(MemoryError) as caught, doing(LOADING):
        raise MemoryError
    assert "while loading the model; choose model.quantization" in (explain(caught.value) or "")


def test_nothing_of_the_round_is_held_by_the_error() -> None:
    held: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activations = torch.ones(10)
        held.append(weakref.ref(activations))
        torch.empty(PEBIBYTE, dtype=torch.uint8)

    with pytest.raises(RuntimeError) as plain:
        work()
    assert held[0]() is not None  # by the traceback
    release(plain.value)
    assert held[0]() is None
    with pytest.raises(RuntimeError, match="client 1: out of memory") as caught, name_errors(1):
        work()
    assert held[1]() is None
    assert caught.value is not None  # still there, while the tensor is not


SECOND = Signal("second")


@dataclass(frozen=True)
class WantsTooMuch(WeightTerm):
    """In round 2 client 1 wants a pebibyte in the middle of its training."""

    second: Signal = SECOND

    def loss(self, step: LocalStep) -> Tensor | None:
        state["steps"] += 1
        if self.second in step.told and state["client"] == 1 and state["steps"] == 2:
            torch.empty(PEBIBYTE, dtype=torch.uint8)
        return None


@dataclass(frozen=True)
class Notes(Once):
    """Trains all experts, and notes whose turn it is."""

    def budget(self, own: LocalClient) -> int:
        return own.shape.num_experts

    def choose(self, own: LocalClient) -> Sequence[Collection[int]]:
        state.update(client=own.client, steps=0)
        return [range(own.shape.num_experts)] * own.shape.num_layers


@dataclass(frozen=True)
class TellsOnce(Telling):
    second: Signal = SECOND

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Any]:
        return {self.second: torch.ones(1)} if now.info.server_round == 1 else {}


class Greedy(Scheme):
    """FedAvg, but for one client that wants too much memory."""

    def client(self, model: ModelShape) -> Client:
        return Client(select=Notes(), terms=(WantsTooMuch(),))

    def server(self, model: ModelShape) -> Server:
        return Server(steps=(TellsOnce(),))


state = {"client": 0, "steps": 0}


def test_the_run_goes_on_and_the_client_is_back_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes longer than the rounds.
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    overrides = {
        "scheme": f"{__name__}:Greedy",
        "num-server-rounds": 3,
        "data.max-train-examples": 160,
        "data.max-test-examples": 32,
        "data.max-length": 16,
        "data.min-partition-size": 40,
        "output-dir": str(tmp_path),
    }
    lines = read_metrics(run_in_process(flat_config(**overrides), 3))
    assert [line["status"] for line in lines] == ["ok"] * 4
    trained = [[client["client"] for client in line["clients"]] for line in lines[1:]]
    assert trained == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert [line["failures"] for line in (lines[1], lines[3])] == [[], []]
    (failure,) = lines[2]["failures"]
    assert failure["who"] == "client 1"
    assert failure["reason"].startswith("out of memory in round 2 while training, 1.05e+06 GiB")
