"""What a fold says of itself: the layout of the tables, nulls, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import (
    BlockUpdates,
    ExpertProbe,
    FedAvg,
    FedMoE,
    ModelShape,
    RoundInfo,
    RoundProbe,
    Scheme,
    Server,
    read_metrics,
)
from fedmoe_app.aggregation import diagnostics
from fedmoe_app.aggregation.diagnostics import conflict_share
from fedmoe_app.results.folder import RunFolder
from tests.toy import diagnose_toy, own_update


class Examples(RoundProbe):
    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        return {"examples": info.num_examples}


class OneOfEach(ExpertProbe):
    def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
        size = len(updates.members)
        return {
            "number": updates.block.key[1] + 0.5,
            "scalar": change.sum(),
            "of_members": torch.arange(size) + 1.0,
            "of_pairs": torch.arange(size * size).reshape(size, size) + 1.0,
        }


class Telling(Scheme):
    """Tells one value of every kind."""

    def server(self, model: ModelShape) -> Server:
        return Server(probes=(Examples(), OneOfEach()))


UPDATES = [
    own_update(0, 1, {(0, 0): [1.0, 0.0, 0.0]}),
    own_update(4, 2, {(1, 1): [1.0, 1.0, 0.0]}),
    own_update(7, 1, {(0, 0): [-3.0, 0.0, 0.0], (1, 1): [2.0, 0.0, 0.0]}),
]
NOBODY = [None, None, None]


def test_tables_are_layers_by_experts_with_null_where_nobody_trained() -> None:
    found = diagnose_toy(Telling(), UPDATES)
    assert found["number"] == [[0.5, None, None], [None, 1.5, None]]
    # Weights n_i/4: 1/4·[1, 0, 0] + 1/4·[−3, 0, 0]; 2/4·[1, 1, 0] + 1/4·[2, 0, 0]
    assert found["scalar"] == [[-0.5, None, None], [None, 1.5, None]]
    assert found["examples"].tolist() == [1.0, 2.0, 1.0]


def test_members_numbers_stand_at_their_clients_place() -> None:
    found = diagnose_toy(Telling(), UPDATES)
    assert found["of_members"] == [[[1.0, None, 2.0], None, None], [None, [None, 1.0, 2.0], None]]
    assert found["of_pairs"][0] == [
        [[1.0, None, 2.0], NOBODY, [3.0, None, 4.0]],
        None,
        None,
    ]
    assert found["of_pairs"][1][1] == [NOBODY, [None, 1.0, 2.0], [None, 3.0, 4.0]]


def test_conflict_and_weights_are_told_under_any_scheme() -> None:
    found = diagnose_toy(FedMoE(), UPDATES)
    # Expert (0, 0): mean [−1, 0, 0], against which client 0 stands; (1, 1): nobody.
    assert found["conflict"] == [[0.5, None, None], [None, 0.0, None]]
    assert found["expert_weights"][0][0] == [0.5, None, 0.5]
    assert found["expert_weights"][1][1] == pytest.approx([None, 2 / 3, 1 / 3])
    of_fedavg = diagnose_toy(FedAvg(), UPDATES)
    assert of_fedavg["expert_weights"][0][0] == [0.25, None, 0.25]


def test_orthogonal_and_zero_changes_do_not_conflict() -> None:
    deltas = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1e-20, 0.0], [0.0, 0.0]])
    assert conflict_share(deltas, torch.tensor([1.0, 0.0])) == 0.25
    assert conflict_share(deltas, torch.zeros(2)) == 0.0


def test_matrices_are_left_out_where_they_would_be_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 2 * 3 * 3 * 3  # L·E·N²
    monkeypatch.setattr(diagnostics, "MAX_PAIRS", size)
    assert "of_pairs" in diagnose_toy(Telling(), UPDATES)
    monkeypatch.setattr(diagnostics, "MAX_PAIRS", size - 1)
    found = diagnose_toy(Telling(), UPDATES)
    assert "of_pairs" not in found
    assert {"number", "scalar", "of_members", "conflict", "expert_weights"} <= set(found)


def test_one_client() -> None:
    found = diagnose_toy(Telling(), UPDATES[:1])
    assert found["of_members"] == [[[1.0], None, None], [None, None, None]]
    assert found["of_pairs"][0][0] == [[1.0]]
    assert found["conflict"][0][0] == 0.0


def test_nobody_trained_anything() -> None:
    found = diagnose_toy(Telling(), [own_update(0, 1, {})])
    assert set(found) == {"examples"}


def test_the_tables_go_into_a_metrics_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    found = diagnose_toy(Telling(), UPDATES)
    folder.append({"diagnostics": found})
    (line,) = read_metrics(folder.path)
    assert line["diagnostics"]["of_pairs"] == found["of_pairs"]
    assert line["diagnostics"]["examples"] == [1.0, 2.0, 1.0]
    assert json.loads(json.dumps(found["of_members"])) == found["of_members"]
