"""What a client does around its training: the sample on which experts are chosen."""

from __future__ import annotations

from typing import Any

import pytest

from fedmoe_app import FedAvg, ModelState
from fedmoe_app.client.round import ClientRound
from fedmoe_app.client.rows import ClientRows
from fedmoe_app.config.node import Node
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.tasks.setup import load_setup
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config


def test_usage_is_counted_on_a_drawn_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be sorted by label: its first rows are one class only."""
    config = make_config()
    setup = load_setup(config, ["a", "b"])
    rows: list[Any] = [{"input_ids": [1, 5 + i % 7, 2], "labels": i // 50} for i in range(100)]
    seen: list[int] = []
    collate = setup.task.collate

    def watch(batch: Any, device: Any) -> Any:
        seen.extend(row["labels"] for row in batch)
        return collate(batch, device)

    monkeypatch.setattr(setup.task, "collate", watch)
    client_rows = ClientRows(Encoded(rows, 0), Encoded([], 0))
    usage = ClientRound(
        config, Node(0, 0, 2, None), TrainTask(1, ModelState()), FedAvg(), setup, client_rows
    )._usage
    stats = usage(20)
    assert len(seen) == 20
    assert set(seen) == {0, 1}
    # Top-2 of three tokens a text, in each of the two layers.
    assert stats.count.sum(1).tolist() == [2 * 3 * 20] * 2
    assert stats.trained.sum() == 0
    seen.clear()
    usage(1000)
    assert len(seen) == 100
