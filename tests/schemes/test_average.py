"""The reported model: a mean of the global ones that is scored and saved, and never trained on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fedmoe_app import ConfigError, ModelShape, Now, Step, make_scheme, read_metrics
from fedmoe_app.aggregation.aggregate import FoldError, reported
from fedmoe_app.cli.export import write_model
from fedmoe_app.schemes.average import Averaged, LastModels, MovingAverage
from fedmoe_app.schemes.base import Plan
from tests.conftest import make_config
from tests.invariant.runs import GoldenRun
from tests.schemes.conftest import SharedRuns
from tests.schemes.parts_at_work import info

SHAPE = ModelShape(1, 2, 1, head="score")


def walked(step: Step, *models: float) -> list[float]:
    """What is reported of one value over the rounds."""
    state: Mapping[str, Tensor] = {}
    found = []
    for model in models:
        values, state = reported({"w": torch.tensor([model])}, (step,), info(1), state)
        found.append(float(values["w"]))
    return found


def test_a_moving_average_by_hand() -> None:
    """4; (½·4 + 1)/1.5; (¼·4 + ½·1 + 7)/1.75."""
    assert walked(MovingAverage(0.5), 4.0, 1.0, 7.0) == pytest.approx([4.0, 2.0, 8.5 / 1.75])


def test_the_mean_of_the_last_by_hand() -> None:
    assert walked(LastModels(2), 4.0, 1.0, 7.0) == pytest.approx([4.0, 2.5, 4.0])
    assert walked(LastModels(3), 4.0, 1.0, 7.0, 10.0) == pytest.approx([4.0, 2.5, 4.0, 6.0])


@pytest.mark.parametrize("step", [MovingAverage(0.0), LastModels(1)])
def test_switched_off_it_is_the_model_itself(step: Step) -> None:
    assert walked(step, 4.0, 1.0, 7.0) == [4.0, 1.0, 7.0]


class Half(Step):
    """Reports half of ``w``, and of nothing else."""

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        return {"w": now.change.get("w", 0) - 0.5 * now.values["w"]}, {}


def test_steps_follow_each_other_and_the_rest_is_reported_as_it_is() -> None:
    values = {"w": torch.tensor([8.0]), "v": torch.tensor([3.0])}
    found, _ = reported(values, (Half(), Half()), info(1), {})
    assert found["w"].tolist() == [0.0]
    assert found["v"] is values["v"]


def test_a_state_that_is_lost_is_refused() -> None:
    _, state = reported({"w": torch.ones(1)}, (MovingAverage(),), info(1), {})
    with pytest.raises(FoldError, match="MovingAverage: its state has other tensors"):
        reported({"v": torch.ones(1)}, (_Forgets(),), info(1), state)


class _Forgets(MovingAverage):
    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        return {}, {}


_Forgets.__name__ = "MovingAverage"


def averaged(**keys: Any) -> Any:
    config = {f"average.{key}": value for key, value in keys.items() if key != "more"}
    return make_scheme(make_config(**config, **keys.get("more", {})))


def test_what_is_built_of_the_keys() -> None:
    assert averaged() == make_scheme(make_config(scheme="fedavg"))
    scheme = averaged(of="moving", beta=0.25)
    assert isinstance(scheme, Averaged)
    assert Plan.of(scheme, SHAPE).server.reported == (MovingAverage(0.25),)
    assert Plan.of(averaged(of="last", models=3), SHAPE).server.reported == (LastModels(3),)
    with pytest.raises(ConfigError, match='average.of = "last": after the run EstimateHead moves'):
        Plan.of(averaged(of="last", more={"head.closed-form": "after"}), SHAPE)
    for wrong in ({"beta": 1.0}, {"models": 0}, {"of": "all"}):
        with pytest.raises(ConfigError, match=f"average.{min(wrong)} = "):
            averaged(**wrong)


# -- whole runs --------------------------------------------------------------------------------


def run_with(**keys: Any) -> GoldenRun:
    config = {"train.learning-rate": 1e-2, "keep-checkpoints": 9, "keep-client-state": True, **keys}
    return GoldenRun(config)


def tensors(results: Path, server_round: int, name: str = "state") -> dict[str, Tensor]:
    return load_file(results / "checkpoints" / f"round-{server_round:05d}" / f"{name}.safetensors")


LAST: dict[str, Any] = {"average.of": "last", "average.models": 2}


def test_clients_train_as_without_it_and_the_mean_is_scored_and_saved(runs: SharedRuns) -> None:
    results, plain = runs.of(run_with(**LAST)), runs.of(run_with())
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 4
    models = [tensors(results, n) for n in range(4)]
    for n in range(4):
        assert all(t.equal(models[n][key]) for key, t in tensors(plain, n).items())
    mean = tensors(results, 3, "reported")
    for key, value in mean.items():
        torch.testing.assert_close(value, (models[2][key] + models[3][key]) / 2)
    lines, others = read_metrics(results), read_metrics(plain)
    assert [lines[n]["loss"] == others[n]["loss"] for n in range(4)] == [True, True, False, False]
    saved = AutoModelForSequenceClassification.from_pretrained(results / "model")
    assert saved.score.weight.equal(mean["score.weight"])


@pytest.mark.parametrize("keys", [LAST, {"average.of": "moving"}], ids=["last", "moving"])
def test_a_resumed_run_reports_the_same(keys: Mapping[str, Any], runs: SharedRuns) -> None:
    run = run_with(**keys, scheme="fedavgm")  # a step with state beside it
    whole, again = runs.of(run), runs.resumed(run, after=2)
    for name in ("state", "server-state", "reported"):
        mine, other = tensors(whole, 3, name), tensors(again, 3, name)
        assert mine.keys() == other.keys()
        assert all(mine[key].equal(other[key]) for key in mine), name
    assert [line["loss"] for line in read_metrics(whole)] == [
        line["loss"] for line in read_metrics(again)
    ]


def test_the_exported_model_is_the_reported_one(
    runs: SharedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, run = tmp_path / "run", run_with(**LAST)
    shutil.copytree(runs.of(run), results, ignore=shutil.ignore_patterns("model"))
    monkeypatch.setenv("FEDMOE_HOME", str(runs.home_of(run)))
    write_model(results, "hf", tmp_path / "exported")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    assert model.score.weight.equal(tensors(results, 3, "reported")["score.weight"])


def test_nodes_that_score_the_model_score_the_mean(runs: SharedRuns) -> None:
    """Without a test set of the server's: by the clients' own examples."""
    keys = {**LAST, "data.test-source": "", "num-server-rounds": 2}
    found = read_metrics(runs.of(run_with(**keys)))
    plain = read_metrics(runs.of(run_with(**keys | {"average.of": "none"})))
    assert [line["status"] for line in found] == ["ok"] * 3
    assert found[1]["loss"] == plain[1]["loss"]
    assert found[2]["loss"] != plain[2]["loss"]
