"""Whole runs under client-level differential privacy, and what they leave behind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError, read_metrics, run_in_process
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.ledger import BudgetSpentError
from fedmoe_app.privacy.randomness import OfSystem
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.server.rounds import RunFailedError
from tests.privacy.conftest import short_run
from tests.toy import write_topics

CLIENTS = 4
DP = {"privacy.dp": "fixed", "privacy.dp-noise": 0.5, "privacy.dp-clients": CLIENTS}


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(short_run(folder, **DP | overrides), CLIENTS)


def final_model(results: Path) -> dict[str, torch.Tensor]:
    return load_file(results / "model" / "model.safetensors")


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfSystem, "normal", lambda self, size: np.zeros(size))


def test_epsilon_is_in_metrics_events_table_report_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fedmoe"):
        results = run(tmp_path)
    spent = epsilon(1.0, 0.5, 2, 1e-5)
    lines = read_metrics(results)
    assert [line["privacy"]["releases"] for line in lines[1:]] == [1, 2]
    assert lines[2]["privacy"]["epsilon"] == pytest.approx(spent, abs=1e-3)
    assert "privacy" not in lines[0]
    events = [json.loads(text) for text in (results / "log.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "privacy-spent"]
    assert [(event["round"], event["releases"]) for event in told] == [(1, 1), (2, 2)]
    assert "epsilon" in capsys.readouterr().out
    assert f"ε = {spent:.3g}" in (results / "report.html").read_text()
    assert f"({spent:.3g}, 1e-05)-differentially" in (results / "model" / "README.md").read_text()
    said = "\n".join(event["message"] for event in events)
    assert "a ratio of 1 takes" in said
    assert "expect no useful model" in said


def test_nothing_of_a_client_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fedmoe"):
        results = run(tmp_path, **{"privacy.dp-sample-rate": 0.5, "privacy.dp-noise": 4.0})
    for line in read_metrics(results)[1:]:
        for key in ("clients", "failures"):
            assert line[key] == []
        for key in ("num_clients", "bytes_up", "bytes_down", "train_loss"):
            assert line[key] is None
        assert line["routing"] == {"count": [], "trained": []}
        assert line["diagnostics"] == line["rejected"] == {}
        assert line["seconds"].keys() == {"round"}
    newest = max((results / "checkpoints").iterdir())
    counters = json.loads((newest / "checkpoint.json").read_text())["counters"]
    for key in ("roster", "sizes", "tests", "last_replies", "rests", "holding"):
        assert not counters[key], key
    for name in ("log.jsonl", "status.json", "report.html"):
        assert "client 0" not in (results / name).read_text()
    asked = [
        json.loads(text)["asked"]
        for text in (results / "log.jsonl").read_text().splitlines()
        if json.loads(text)["event"] == "round-started"
    ]
    assert asked == [2, 2]  # the expected number, whoever was drawn


def test_without_noise_and_clip_it_is_the_mean_with_equal_weights(
    tmp_path: Path, no_noise: None
) -> None:
    keys = {"scheme-args": "", "num-server-rounds": 1, "data.partition": "iid"}
    private = run(tmp_path, **keys, **{"privacy.dp-clip": 1e6})
    plain = run_in_process(short_run(tmp_path, **keys), CLIENTS)
    sizes = {client["num_examples"] for client in read_metrics(plain)[1]["clients"]}
    assert len(sizes) == 1  # so that weights by examples are equal, too
    mine, theirs = final_model(private), final_model(plain)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


def test_the_model_moves_by_less_than_the_clip(tmp_path: Path, no_noise: None) -> None:
    results = run(tmp_path, **{"num-server-rounds": 1, "privacy.dp-clip": 0.01})
    folders = sorted((results / "checkpoints").iterdir())
    before, after = (load_file(folder / "state.safetensors") for folder in folders[-2:])
    moved = sum(float((after[name] - before[name]).double().square().sum()) for name in after)
    assert 0 < moved**0.5 <= 0.01


def test_two_runs_with_one_seed_differ(tmp_path: Path) -> None:
    one, other = (final_model(run(tmp_path, **{"num-server-rounds": 1})) for _ in range(2))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_counted_denominators_serve_fedmoe(tmp_path: Path) -> None:
    lines = read_metrics(run(tmp_path, **{"privacy.dp": "counted", "scheme": "fedmoe"}))
    assert [line["status"] for line in lines] == ["ok"] * 3


def test_the_best_round_is_chosen_on_rows_of_the_servers(tmp_path: Path) -> None:
    rows = tmp_path / "validation.jsonl"
    write_topics(rows, 3)
    keys = {"keep-best": "loss", "data.validation-source": str(rows), "average.of": "last"}
    lines = read_metrics(run(tmp_path, **keys))
    assert all(line["validation"]["loss"] > 0 for line in lines[1:])
    assert lines[-1]["best"]
    assert lines[-1]["clients"] == []


def test_a_draw_of_nobody_is_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfSystem, "uniform", lambda self, size: np.ones(size))
    results = run(tmp_path, **{"privacy.dp-sample-rate": 0.5})
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 3


def test_clients_that_all_fail_make_a_failed_round_without_a_name(tmp_path: Path) -> None:
    flat = short_run(tmp_path, **DP | {"max-failed-rounds": 1})
    nodes = [{"partition-id": i, "num-partitions": CLIENTS, "codec": "no"} for i in range(CLIENTS)]
    with pytest.raises(RunFailedError, match="no usable reply") as error:
        run_in_process(flat, CLIENTS, nodes)
    assert "client 0" not in str(error.value)
    assert "codec" not in str(error.value)


@contextmanager
def stopped_after_line(server_round: int) -> Iterator[None]:
    """Press Ctrl-C between a round's line and its checkpoint."""
    original = RunFolder.append

    def act(self: RunFolder, line: Any) -> None:
        original(self, line)
        if line["round"] == server_round:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "append", act)
        yield


def test_a_round_that_is_repeated_after_a_crash_is_a_second_release(tmp_path: Path) -> None:
    flat = short_run(tmp_path, **DP | {"run-name": "run"})
    with stopped_after_line(2):
        run_in_process(flat, CLIENTS)
    folder = tmp_path / "out" / "run"
    assert json.loads((folder / "privacy.json").read_text())["releases"] == 2
    run_in_process(flat | {"resume": str(folder)}, CLIENTS)
    lines = read_metrics(folder)
    assert [line["privacy"]["releases"] for line in lines[1:]] == [1, 3]
    assert lines[2]["privacy"]["epsilon"] == pytest.approx(epsilon(1, 0.5, 3, 1e-5), abs=1e-3)


def test_a_ledger_that_is_lost_counts_what_the_checkpoint_knows(tmp_path: Path) -> None:
    flat = short_run(tmp_path, **DP | {"run-name": "run"})
    folder = run_in_process(flat | {"num-server-rounds": 1}, CLIENTS)
    (folder / "privacy.json").unlink()
    run_in_process(flat | {"resume": str(folder)}, CLIENTS)
    assert read_metrics(folder)[-1]["privacy"]["releases"] == 2
    (folder / "privacy.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"privacy\.json: cannot be read"):
        run_in_process(flat | {"resume": str(folder), "num-server-rounds": 3}, CLIENTS)


def test_a_run_ends_before_it_spends_more_than_it_may(tmp_path: Path) -> None:
    limit = epsilon(1, 0.5, 1, 1e-5) + 0.1
    with pytest.raises(BudgetSpentError, match="1 releases have spent"):
        run(tmp_path, **{"privacy.dp-epsilon": limit, "run-name": "run"})
    lines = read_metrics(tmp_path / "out" / "run")
    assert [line["round"] for line in lines] == [0, 1]
    assert (tmp_path / "out" / "run" / "model").is_dir()


def test_rounds_from_which_the_noise_was_worked_out_stay(tmp_path: Path) -> None:
    keys = {"privacy.dp-noise": 0.0, "privacy.dp-epsilon": 9.0, "run-name": "run"}
    flat = short_run(tmp_path, **DP | keys)
    folder = run_in_process(flat, CLIENTS)
    assert read_metrics(folder)[-1]["privacy"]["epsilon"] == pytest.approx(9, abs=0.01)
    with pytest.raises(ConfigError, match="num-server-rounds = 2, now 3"):
        run_in_process(flat | {"resume": str(folder), "num-server-rounds": 3}, CLIENTS)


def test_a_scheme_that_is_no_sum_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plain sum"):
        run(tmp_path, scheme="fcmoe")
    with pytest.raises(ConfigError, match="head.closed-form"):
        run(tmp_path, **{"head.closed-form": "before"})
