"""Trackers, with stand-ins for the few calls of their packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.schema import TRACKERS
from fedmoe_app.results import trackers
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.trackers import Trackers, open_trackers
from tests.conftest import make_config

Calls = list[tuple[Any, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Stand-ins for both packages; what they were called with."""
    made: Calls = []
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # put back afterwards
    run = SimpleNamespace(
        log=lambda values, step: made.append(("log", step, values)),
        finish=lambda exit_code: made.append(("finish", exit_code)),
    )
    wandb = ModuleType("wandb")
    wandb.init = lambda **given: made.append(("init", given)) or run  # type: ignore[attr-defined]
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = lambda uri: FakeClient(uri, made)  # type: ignore[attr-defined]
    entities.Metric = entities.Param = lambda *given: given  # type: ignore[attr-defined]
    for module in (wandb, mlflow, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield made


class FakeClient:
    """The calls of ``MlflowClient`` that are used."""

    def __init__(self, uri: str, made: Calls) -> None:
        self.made = made
        made.append(("client", uri))

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"id of {name}"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.made.append(("run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.made.append(("batch", run_id, metrics, params))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.made.append(("end", run_id, status))


def test_every_name_has_a_tracker() -> None:
    assert trackers.KINDS.keys() == set(TRACKERS)


def test_a_wrong_name_is_refused_with_the_choices() -> None:
    assert make_config(track=" mlflow,wandb ").track == " mlflow,wandb "
    with pytest.raises(
        ConfigError, match=r"track = \"wandb,x\".*unknown x; choose from tensorboard, wandb, ml"
    ):
        make_config(track="wandb,x")


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    trackers.require_trackers("")
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*pip install mlflow-skinny"):
        trackers.require_trackers("mlflow")


def test_wandb_is_offline_in_the_result_folder(calls: Calls, tmp_path: Path) -> None:
    (found,) = trackers.open_trackers(make_config(track="wandb"), tmp_path).values()
    found.log(2, {"global/loss": 1.0})
    found.close(failed=True)
    (_, given), *rest = calls
    assert (given["mode"], given["dir"], given["name"]) == ("offline", str(tmp_path), tmp_path.name)
    assert given["config"]["data.alpha"] == 0.5
    assert rest == [("log", 2, {"global/loss": 1.0}), ("finish", 1)]


def test_mlflow_writes_files_into_the_result_folder(calls: Calls, tmp_path: Path) -> None:
    (found,) = trackers.open_trackers(make_config(track="mlflow"), tmp_path).values()
    found.log(3, {f"n/{i}": float(i) for i in range(1500)})
    found.close(failed=False)
    client, run, params, first, second, end = calls
    assert client == ("client", (tmp_path / "mlruns").as_uri())
    assert run == ("run", "id of fedmoe", tmp_path.name)
    assert ("data.alpha", "0.5") in params[3]
    assert all(value for _, value in params[3])  # MLflow refuses empty ones
    assert (len(first[2]), len(second[2])) == (1000, 500)
    name, value, _, step = second[2][-1]
    assert (name, value, step) == ("n/1499", 1499.0, 3)
    assert end == ("end", "r1", "FINISHED")


def test_a_tracker_that_fails_does_not_cost_the_run(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(FakeClient, "log_batch", lambda self, *a, **m: None)
    found = Trackers(open_trackers(make_config(track="mlflow,wandb"), tmp_path))
    monkeypatch.setattr(FakeClient, "log_batch", full)
    found.on_round(RoundRecord(0, evaluation={"loss": 1.5}))
    found.on_end(ValueError("the run itself"))
    names = [call[0] for call in calls]
    assert names == ["client", "run", "init", "log", "finish"]  # MLflow is left out, wandb goes on
    assert calls[-1] == ("finish", 1)
