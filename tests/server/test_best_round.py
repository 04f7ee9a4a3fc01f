"""Keeping the best round: which one it is, when the run ends, and that a resume changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError, DataError, load_run, read_metrics, run_in_process
from fedmoe_app.cli.commands.status import overview
from fedmoe_app.cli.export import export
from fedmoe_app.compare.figures import figures_of
from fedmoe_app.results.best import BestRound, ended_early, kept_line
from fedmoe_app.results.folder import list_checkpoints, round_of
from tests.conftest import flat_config, make_config
from tests.homes import home_with_cache
from tests.toy import write_topics

CLIENTS = 2


def noted(metric: Any, *values: float | None, patience: int = 0) -> BestRound:
    keeper = BestRound(metric, patience)
    for number, value in enumerate(values, start=1):
        keeper.note(number, None if value is None else {metric: value})
    return keeper


def test_the_best_is_the_highest_accuracy_or_the_lowest_loss_and_the_first_of_equals() -> None:
    for keeper, expected in (
        (noted("accuracy", 0.2, 0.5, 0.5, 0.4), (2, 0.5)),
        (noted("loss", 0.9, 0.3, 0.3, 0.4), (2, 0.3)),
        (noted("loss", float("nan"), None, 2.0), (3, 2.0)),
    ):
        assert keeper.best is not None
        assert (keeper.best.round, keeper.best.value) == expected
    assert noted("loss", None).best is None


def test_a_run_is_over_when_as_many_rounds_as_patience_have_passed() -> None:
    keeper = noted("accuracy", 0.2, 0.5, 0.4, patience=2)
    assert not keeper.is_over(3)
    assert keeper.is_over(4)
    assert keeper.line(4) == {"by": "accuracy", "round": 2, "value": 0.5, "ended": True}
    assert not noted("accuracy", 0.5, 0.4).is_over(99)  # patience = 0
    assert not noted("accuracy", None, patience=1).is_over(99)  # nothing was ever scored


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patience": 2}, 'patience = 2 with keep-best = ""'),
        ({"keep-best": "accuracy", "patience": 1, "evaluate-every": 2}, "evaluate-every = 2"),
        ({"keep-best": "f1"}, "accuracy"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**keys)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    return home


def config(folder: Path, **overrides: Any) -> dict[str, Any]:
    """A diverging run: its learning rate is so high that the last round is not the best."""
    for name, number in (("train", 12), ("test", 3), ("validation", 4)):
        if not (folder / f"{name}.jsonl").exists():
            write_topics(folder / f"{name}.jsonl", number)
    return flat_config(
        **{
            "num-server-rounds": 4,
            "output-dir": str(folder / "out"),
            "data.source": str(folder / "train.jsonl"),
            "data.test-source": str(folder / "test.jsonl"),
            "data.validation-source": str(folder / "validation.jsonl"),
            "data.max-length": 12,
            "data.partition": "iid",
            "train.max-steps": 2,
            "train.learning-rate": 0.3,
            "keep-best": "accuracy",
            "diagnostics": False,
        }
        | overrides
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model" / "model.safetensors"))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_the_kept_model_is_that_of_the_best_round(tmp_path: Path) -> None:
    run = run_in_process(config(tmp_path, **{"run-name": "whole", "keep-checkpoints": 1}), CLIENTS)
    lines = read_metrics(run)
    scores = {line["round"]: line["validation"]["accuracy"] for line in lines[1:]}
    best = max(scores, key=lambda number: (scores[number], -number))
    assert lines[-1]["best"]["round"] == best < 4  # a run that shows something
    assert kept_line(lines)["round"] == best
    # the checkpoint of the best round outlives keep-checkpoints = 1
    assert {round_of(path) for path in list_checkpoints(run)} == {4, best}
    shorter = config(tmp_path, **{"run-name": "short", "num-server-rounds": best, "keep-best": ""})
    assert same(weights(run), weights(run_in_process(shorter, CLIENTS)))
    assert figures_of(lines, 4).accuracy == lines[best]["accuracy"]
    assert f"round {best}, the best by accuracy" in (run / "model" / "README.md").read_text()
    assert f"of round {best}" in load_run(run).report().read_text()
    assert any(text.startswith(f"kept      round {best}") for text in overview(run))
    # what a stopped run is exported from is the best round, too
    (run / "model" / "config.json").unlink()
    exported = export(run, "hf", tmp_path / "exported")
    assert same(weights(run), dict(load_file(exported / "model.safetensors")))


def test_patience_ends_a_run_and_a_resume_ends_it_in_the_same_round(tmp_path: Path) -> None:
    flat = config(tmp_path, **{"num-server-rounds": 9, "patience": 2})
    whole = run_in_process(flat | {"run-name": "whole"}, CLIENTS)
    lines = read_metrics(whole)
    best, last = lines[-1]["best"]["round"], lines[-1]["round"]
    assert last == best + 2 < 9
    assert ended_early(lines)
    assert figures_of(lines, 9).failure is None  # early is no failure
    # Stopped by a lower patience in an earlier round, then with more of it.
    part = run_in_process(flat | {"run-name": "part", "patience": 1}, CLIENTS)
    assert read_metrics(part)[-1]["round"] < last
    with pytest.raises(ConfigError, match="no round was better than round"):
        run_in_process(flat | {"patience": 1, "resume": str(part)}, CLIENTS)
    resumed = run_in_process(flat | {"resume": str(part)}, CLIENTS)
    assert same(weights(whole), weights(resumed))
    mine, theirs = ([line["best"] for line in read_metrics(f)[1:]] for f in (resumed, whole))
    assert [each | {"ended": 0} for each in mine] == [each | {"ended": 0} for each in theirs]


def test_without_rows_of_the_server_clients_score_on_their_own(tmp_path: Path) -> None:
    flat = config(tmp_path, **{"data.validation-source": "", "num-server-rounds": 1})
    (_, line) = read_metrics(run_in_process(flat, CLIENTS))
    own = config(tmp_path, **{"data.validation-source": "", "num-server-rounds": 1,
                              "data.test-source": "", "keep-best": ""})  # fmt: skip
    (_, scored) = read_metrics(run_in_process(own, CLIENTS))
    assert line["validation"]["loss"] == scored["loss"]  # what it is without a test set
    assert line["loss"] != scored["loss"]


def test_validation_rows_alone_are_scored_and_change_no_model(tmp_path: Path) -> None:
    flat = config(tmp_path, **{"keep-best": "", "num-server-rounds": 1})
    scored = run_in_process(flat | {"run-name": "scored"}, CLIENTS)
    plain = run_in_process(flat | {"run-name": "plain", "data.validation-source": ""}, CLIENTS)
    assert "validation" in read_metrics(scored)[-1]
    assert "best" not in read_metrics(scored)[-1]
    assert same(weights(scored), weights(plain))


def test_rows_that_are_test_or_training_rows_are_refused(tmp_path: Path) -> None:
    flat = config(tmp_path)
    for key in ("data.source", "data.test-source"):
        with pytest.raises(DataError, match=f"is in {key}, too"):
            run_in_process(flat | {"data.validation-source": str(flat[key])}, CLIENTS)


def test_a_step_after_the_last_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match='keep-best = "accuracy": fedavg moves the model once more'
    ):
        run_in_process(config(tmp_path, **{"head.closed-form": "after"}), CLIENTS)
