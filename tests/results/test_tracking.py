"""TensorBoard's event files: the figures of the metrics lines, read back with its own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app.results.trackers import TensorBoardTracker, scalars
from tests.cli.test_status import line


def test_figures_come_back_and_a_resumed_run_hides_later_rounds(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    figures = {"train_loss": 0.5, "num_clients": 2, "seconds": {"train": 1.5, "clients": []}}
    clients = [{"client": 3, "accuracy": 0.75, "local_accuracy": None}]
    for first, rounds, loss in ((0, (0, 1, 2), 9.0), (2, (2, 3), 5.0)):
        tracker = TensorBoardTracker(tmp_path, {}, first)
        for server_round in rounds:
            values = line(server_round, **figures, clients=clients) | {"loss": loss}
            tracker.log(server_round, scalars(values))
        tracker.close(failed=False)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("global/loss")]
    assert losses == [(0, 9.0), (1, 9.0), (2, 5.0), (3, 5.0)]
    assert found.Scalars("client/3/accuracy")[-1].value == 0.75
    assert "client/3/local_accuracy" not in found.Tags()["scalars"]
