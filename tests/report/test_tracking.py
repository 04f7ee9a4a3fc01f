"""TensorBoard's event files: the figures of the metrics lines, read back with its own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app.config import ConfigError
from fedmoe_app.report import tracking
from tests.report.test_overview import line


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedmoe\[tracking\]"):
        tracking.check_tensorboard()


def test_figures_come_back_and_a_resumed_run_hides_later_rounds(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seconds = {"train": 1.5, "clients": []}
    figures = {"train_loss": 0.5, "num_clients": 2, "seconds": seconds}
    clients = [{"client": 3, "accuracy": 0.75, "local_accuracy": None}]
    for first, rounds, loss in ((0, (0, 1, 2), 9.0), (2, (2, 3), 5.0)):
        curves = tracking.Curves(tmp_path, first)
        for server_round in rounds:
            curves.add(line(server_round, **figures, clients=clients) | {"loss": loss})
        curves.close()
    found = accumulator.EventAccumulator(str(tmp_path / tracking.FOLDER)).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("global/loss")]
    assert losses == [(0, 9.0), (1, 9.0), (2, 5.0), (3, 5.0)]
    assert found.Scalars("clients/accuracy/3")[-1].value == 0.75
    assert found.Scalars("seconds/train")[0].value == 1.5
    assert "clients/local_accuracy/3" not in found.Tags()["scalars"]
