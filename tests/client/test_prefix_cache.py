"""Whole runs that compute the frozen layers once: the same results, and files that go with them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import run_in_process
from fedmoe_app.client.prefix import prefix_once
from fedmoe_app.client.rows import ClientRows
from fedmoe_app.client.store import drop_client
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.data.encoding import Encoded, Row
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.setup import load_setup
from tests.bases import save_base
from tests.conftest import flat_config, make_config
from tests.invariant.runs import make_material

CLIENTS = 2
ONE = {
    "train.per-device-train-batch-size": 1,
    "train.per-device-eval-batch-size": 1,
    "train.max-steps": 6,
}
CHOSEN = {
    "scheme": "fedmoe",
    "model.head": "label-words",
    "model.experts-in-memory": "chosen",
    "fedmoe.experts-per-client": 2,
}
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "lora with a head in closed form": {
        "model.train": "expert-lora",
        "model.lora-rank": 2,
        "head.closed-form": "before",
    },
    "label words, chosen experts": CHOSEN,
    "hfedmoe": {"scheme": "hfedmoe", "hfedmoe.budgets": "2, 3"},
    "fedalign": {"scheme": "fedalign"},
    "fedntd": {"scheme": "fedntd"},
    "personal copy": {"scheme": "pflmoe"},
    "joint personal copy": {"scheme": "pflmoe", "pflmoe.joint": True},
    "checkpointing": {"train.gradient-checkpointing": True},
    "generation": {
        "data.task": "causal-lm",
        "data.metric": "exact-match",
        "data.max-new-tokens": 3,
        "rows": "answers",
    },
    "options": {"data.task": "multiple-choice", "rows": "choices"},
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    save_base(folder / "carved", "Qwen2Moe", num_hidden_layers=4, mlp_only_layers=[0, 1, 2])
    return folder


def run(material: Path, folder: Path, cache: str, **overrides: Any) -> Path:
    rows = overrides.pop("rows", "texts")
    config = {
        "num-server-rounds": 2,
        "model.name": str(material / "carved"),
        "model.train": "experts",
        "data.source": str(material / f"{rows}-train.jsonl"),
        "data.test-source": str(material / f"{rows}-test.jsonl"),
        "data.partition": "iid",
        "data.max-length": 16,
        "train.max-steps": 25,
        "train.learning-rate": 1e-3,
        "train.prefix-cache": cache,
        "output-dir": str(folder),
        "run-name": cache,
    }
    with patch("fedmoe_app.report.files.save", lambda specs, _=None: list(specs)):
        return run_in_process(flat_config(**config | overrides), CLIENTS)


def results(run: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    newest = max((run / "checkpoints").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return load_file(newest / "state.safetensors"), lines


def assert_same(one: Path, other: Path) -> None:
    (state, lines), (others, other_lines) = results(one), results(other)
    assert state.keys() == others.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, others[name]), name
    for line, other_line in zip(lines, other_lines, strict=True):
        for key in ("loss", "accuracy", "train_loss", "bytes_down", "routing"):
            assert line.get(key) == other_line.get(key), key
        for client, other_client in zip(line["clients"], other_line["clients"], strict=True):
            for key in ("loss", "accuracy", "local_loss", "local_accuracy", "personal_accuracy"):
                assert client.get(key) == other_client.get(key), key


@pytest.fixture(autouse=True)
def _own_home(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache of the material: whether its model can be trained is tried once."""
    (tmp_path / "home").mkdir()
    (material / "cache").mkdir(exist_ok=True)
    (tmp_path / "home" / "cache").symlink_to(material / "cache", target_is_directory=True)
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", RUNS)
def test_a_batch_of_one_has_the_same_bits_with_and_without(
    material: Path, tmp_path: Path, name: str
) -> None:
    """No padding, so both compute a text by itself."""
    settings = RUNS[name] | ONE  # so few steps that it would not pay
    cached, plain = (run(material, tmp_path, cache, **settings) for cache in ("on", "off"))
    assert_same(cached, plain)


@contextmanager
def losing_files() -> Iterator[list[bool]]:
    """Lose the hidden states of every client before each of its messages."""
    from fedmoe_app.client import prefix

    load, found = prefix._Files.load, []

    def lose(files: Any, states: Any) -> bool:
        found.append(bool(files._store.names()))
        files._store.drop(files._store.names())
        return load(files, states)

    with patch.object(prefix._Files, "load", lose):
        yield found


def test_batches_have_the_same_bits_whether_hidden_states_were_kept_or_lost(
    material: Path, tmp_path: Path
) -> None:
    kept = run(material, tmp_path / "kept", "auto")
    with losing_files() as found:
        lost = run(material, tmp_path / "lost", "auto")
    assert True in found
    assert_same(kept, lost)


def test_batches_are_close_to_those_without(material: Path, tmp_path: Path) -> None:
    cached, plain = (run(material, tmp_path, cache) for cache in ("auto", "off"))
    state, others = results(cached)[0], results(plain)[0]
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-4)


def test_a_run_that_was_set_back_ends_with_the_same_bits(material: Path, tmp_path: Path) -> None:
    whole = run(material, tmp_path / "whole", "auto")
    first = run(material, tmp_path, "auto", **{"num-server-rounds": 1})
    resumed = run(material, tmp_path, "auto", resume=str(first))
    assert_same(whole, resumed)


def pieces(home: Path) -> list[Path]:
    return sorted(home.glob("clients/*/*/prefix/*"))


def test_files_are_private_and_go_with_the_run(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def look(*arguments: Any) -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in pieces(tmp_path / "home"))
        drop_client(*arguments)

    monkeypatch.setattr("fedmoe_app.client.store.drop_client", look)
    run(material, tmp_path, "auto", **{"keep-client-state": True})
    assert set(modes) == {0o600}
    assert pieces(tmp_path / "home") == []
    assert list((tmp_path / "home").glob("clients/*/*/received/*"))  # what was to be kept


def test_files_of_other_hidden_states_are_dropped(material: Path, tmp_path: Path) -> None:
    """Here of other threads, whose number changes last bits; likewise of another base or dtype."""
    rows = ClientRows(Encoded([Row(input_ids=[1, 5, 6, 2], labels=0)], 0), Encoded([], 0))
    names = []
    for threads in (1, 1, 2):
        config = make_config(
            **{
                "model.name": str(material / "carved"),
                "model.train": "experts",
                "train.threads": threads,
            }
        )
        setup = load_setup(config, ["a", "b"])
        with prefix_once(config, setup, rows, "a" * 32, client=0) as states:
            assert states is not None
            assert len(states) == (len(names) == 1)
            evaluate(setup.model, setup.task, rows.train, 1)
        (piece,) = pieces(tmp_path / "home")
        names.append(piece.name)
    assert names[0] == names[1] != names[2]


def test_the_log_says_what_is_kept(
    material: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fedmoe"):
        run(material, tmp_path, "auto", **{"num-server-rounds": 1})
    assert "layers 1 to 3 of 4 are frozen: computed once a text, 0.1 kB a token" in caplog.text
    assert re.search(r"client 0: hidden states of \d\d texts kept, 0.0 MiB", caplog.text)


def test_on_refuses_a_model_without_a_frozen_prefix(material: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='train.prefix-cache = "on" .* there is no frozen prefix'):
        run(material, tmp_path, "on", **{"model.train": "all"})


@pytest.mark.parametrize(
    "settings",
    [
        {"train.max-steps": 2},
        {"model.train": "all"},
    ],
)
def test_auto_leaves_it_where_it_does_not_pay(
    material: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    """Two steps of 4 of some thirty texts a round, or nothing that is frozen."""
    settings = settings | {"train.per-device-train-batch-size": 4}
    with caplog.at_level(logging.INFO, logger="fedmoe"):
        run(material, tmp_path, "auto", **settings | {"num-server-rounds": 1})
    assert "hidden states" not in caplog.text
