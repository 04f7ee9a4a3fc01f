"""What schemes measure beside the changes, under the guard, in whole runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedmoe_app import ClientUpdate, read_metrics
from fedmoe_app.client import encode
from fedmoe_app.client.round import ClientRound
from tests.server.test_guarded_rounds import LIAR, home, run

__all__ = ["home"]  # a fixture
HEAD = {"head.closed-form": "every-round", "num-server-rounds": 1}


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 2 multiplies what it measures by ten thousand."""
    honest, measure = encode.encode_reply, ClientRound.measure

    def lie(update: ClientUpdate, *rest: Any) -> Any:
        if update.client == LIAR:
            update = replace(update, statistics=greater(update.statistics))
        return honest(update, *rest)

    def lie_of_features(self: ClientRound) -> Mapping[str, Tensor]:
        found = measure(self)
        return greater(found) if self.node.client == LIAR else found

    monkeypatch.setattr(encode, "encode_reply", lie)
    monkeypatch.setattr(ClientRound, "measure", lie_of_features)


def greater(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: 1e4 * tensor for name, tensor in numbers.items()}


@pytest.mark.usefixtures("home", "greedy")
def test_what_the_guard_left_of_a_head_s_sums_stands_in_the_metrics(tmp_path: Path) -> None:
    lines = read_metrics(run(tmp_path, "run", **HEAD))
    for line in lines:  # of round 0, before anybody has trained, and of round 1
        sums_to = line["guard"]["sums_to"]
        assert set(sums_to) == {"0", "1", "2", "3"}
        assert sums_to.pop(str(LIAR)) < 1e-3
        assert set(sums_to.values()) == {1}
    off = read_metrics(run(tmp_path, "off", **HEAD, **{"robust.guard": "off"}))
    assert all("guard" not in line for line in off)


@pytest.mark.usefixtures("home", "greedy")
@pytest.mark.parametrize("scheme", ["grammerge", "calmerge"])
def test_what_the_guard_left_of_a_merge_s_weights_stands_in_the_metrics(
    scheme: str, tmp_path: Path
) -> None:
    for line in read_metrics(run(tmp_path, "run", scheme=scheme))[1:]:
        clients = {client["client"]: client["weighed_to"] for client in line["clients"]}
        assert clients[LIAR] < 1e-3
        assert min(of for client, of in clients.items() if client != LIAR) > 0.1
        assert set(line["guard"]["typical"]) == {"dense", "gates", "expert", "whole"}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "settings",
    [HEAD, {**HEAD, "head.leave-one-out": True}, {**HEAD, "head.closed-form": "after"}],
    ids=["every-round", "leave-one-out", "after"],
)
def test_honest_sums_give_the_run_without_a_guard(settings: dict[str, Any], tmp_path: Path) -> None:
    on, off = (
        run(tmp_path, name, **settings, **{"robust.guard": name}) for name in ("default", "off")
    )
    states = [load_file(path / "model" / "model.safetensors") for path in (on, off)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert set(read_metrics(on)[-1]["guard"]["sums_to"].values()) == {1}
