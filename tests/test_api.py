"""Runs and comparisons from Python, on a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ConfigError, ResultsError, RunResult, compare_schemes, load_run, run

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL: dict[str, Any] = {
    "num-server-rounds": 2,
    "data.max-train-examples": 48,
    "data.max-test-examples": 16,
    "train.max-steps": 1,
}


@pytest.fixture(scope="module")
def done(no_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("api")
    return run(SMALL | {"output-dir": str(folder), "run-name": "mine"}, clients=2)


def test_the_frame_of_a_run_has_a_row_a_round(done: RunResult) -> None:
    assert list(done.metrics.index) == [0, 1, 2]
    assert done.metrics["accuracy"].between(0, 1).all()
    assert done.metrics.loc[2, "accuracy"] == done.lines[2]["accuracy"]
    assert done.metrics.loc[1:, "bytes_up"].gt(0).all()


def test_the_frame_of_the_clients_has_a_row_each_and_round(done: RunResult) -> None:
    assert list(done.clients.index) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert done.clients["num_examples"].groupby("client").nunique().eq(1).all()


def test_the_config_and_the_report_of_a_run(done: RunResult) -> None:
    assert done.config.num_server_rounds == 2
    assert done.config.train.max_steps == 1
    assert done.report().read_text().startswith("<!doctype html>")


def test_the_model_of_a_run_answers(done: RunResult) -> None:
    ids = done.tokenizer()("a matrix of numbers", return_tensors="pt").input_ids
    with torch.no_grad():
        assert done.model()(input_ids=ids).logits.shape == (1, 8)


def test_a_run_is_found_again(done: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_run(done.path).metrics.equals(done.metrics)
    with pytest.raises(ResultsError):
        load_run(done.path / "nothing")


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no model there yet"):
        RunResult(tmp_path).model()


def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning-rat"):
        run({"train.learning-rat": 0.1})


@pytest.mark.usefixtures("cells_here")
def test_a_comparison_has_frames(tmp_path: Path) -> None:
    found = compare_schemes(
        ["fedavg", "fedprox"],
        seeds=[1],
        clients=2,
        config=SMALL | {"num-server-rounds": 1},
        output=tmp_path / "both",
        centralised=False,
    )
    assert list(found.summary["scheme"]) == ["fedavg", "fedprox"]
    assert list(found.cells["seed"]) == [1, 1]
    assert found.summary["difference_mean"].notna().tolist() == [False, True]
    assert (found.path / "report.html").is_file()


def test_a_picture_that_is_not_there_names_those_that_are(done: RunResult) -> None:
    assert done.picture("accuracy").path.name == "accuracy.png"
    for name in ("nothing", "../accuracy"):
        with pytest.raises(ResultsError, match=r"there are: accuracy, bytes, .*routing"):
            done.picture(name)
