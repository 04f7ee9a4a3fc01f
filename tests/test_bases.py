"""Nodes and servers whose base model is another, missing or torn: named, and the run goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ClientUpdate, ConfigError, RunConfig, read_metrics, run_in_process
from fedmoe_app.client import round as local_round
from fedmoe_app.config.node import Node
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint
from fedmoe_app.moe.loading import ModelNotFoundError
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.wire.records import TrainTask
from tests.bases import save_base
from tests.compare.test_in_process import TWO, write_lines
from tests.conftest import flat_config
from tests.moe.families import build

Spoil = Callable[[Path], None]  # what happened to a node's copy of the base


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_base(tmp_path / "base", "Qwen3Moe")
    build("Qwen3Moe").save_pretrained(tmp_path / "base", max_shard_size="40KB")
    (tmp_path / "base" / "model.safetensors").unlink()  # of the first saving, without shards
    return tmp_path / "base"


def config_of(base: Path, **overrides: Any) -> dict[str, Any]:
    file = str(write_lines(base.parent / "rows.jsonl", TWO))
    config = {
        "model.name": str(base),
        "model.head": "label-words",
        "model.train": "expert-lora",
        "model.lora-rank": 2,
        "data.source": file,
        "data.test-source": file,
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 1,
        "max-failed-rounds": 1,
        "output-dir": str(base.parent / "out"),
    }
    return flat_config(**config | overrides)


def run_with_odd_node(
    base: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, clients: int = 3, **overrides: Any
) -> tuple[dict[str, Any], Path]:
    """Run a round in which client 1 has its own copy of the base; return the round's line."""
    copied = base.parent / "copy"
    shutil.copytree(base, copied)
    spoil(copied)
    train = local_round.train_client

    def train_client(
        config: RunConfig, node: Node, task: TrainTask, *more: Any, **options: Any
    ) -> ClientUpdate:
        if node.client == 1:
            model = config.model.model_copy(update={"name": str(copied)})
            config = config.model_copy(update={"model": model})
        return train(config, node, task, *more, **options)

    monkeypatch.setattr(local_round, "train_client", train_client)
    folder = run_in_process(config_of(base, **overrides), clients)
    return read_metrics(folder)[-1], copied


def other_weights(folder: Path) -> None:
    build("Qwen3Moe", seed=1).save_pretrained(folder, max_shard_size="40KB")


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def cut_off(folder: Path) -> None:
    content = first_shard(folder).read_bytes()
    first_shard(folder).write_bytes(content[:-100])


def test_a_copy_of_the_base_serves(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, _ = run_with_odd_node(base, monkeypatch, lambda folder: None)
    assert [c["client"] for c in line["clients"]] == [0, 1, 2]
    assert line["failures"] == []


def test_another_base_is_refused_with_both_fingerprints(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, copied = run_with_odd_node(base, monkeypatch, other_weights)
    assert (line["status"], [c["client"] for c in line["clients"]]) == ("ok", [0, 2])
    (failure,) = line["failures"]
    assert failure["who"] == "client 1"
    fingerprints = [checkpoint_fingerprint(str(path)) for path in (copied, base)]
    assert re.search(
        rf"has fingerprint {fingerprints[0]}, the server's {fingerprints[1]}; put the same files",
        failure["reason"],
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, r'model.name = ".*copy": not a preset .*no such folder'),
        (lambda folder: first_shard(folder).unlink(), "1 of its 3 weight files are missing, such"),
        (cut_off, "model-00001-of-00003.safetensors is cut off or damaged"),
    ],
    ids=["no folder", "a shard missing", "a shard cut off"],
)
@pytest.mark.parametrize("mode", ["all", "expert-lora"])
def test_a_node_without_a_whole_base_fails_alone(
    mode: str, spoil: Spoil, reason: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, _ = run_with_odd_node(base, monkeypatch, spoil, **{"model.train": mode})
    assert (line["status"], [c["client"] for c in line["clients"]]) == ("ok", [0, 2])
    (failure,) = line["failures"]
    assert failure["who"] == "client 1"
    assert re.search(reason, failure["reason"])


def test_too_few_nodes_with_the_base_fail_the_run_with_the_reason(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailedError, match="client 1: .*has fingerprint .* the server's"):
        run_with_odd_node(base, monkeypatch, other_weights, clients=2)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shutil.rmtree, ModelNotFoundError, "no such folder"),
        (lambda folder: first_shard(folder).unlink(), ConfigError, "weight files are missing"),
        (cut_off, ConfigError, "cut off or damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), ValueError, "tokenizer"),
    ],
    ids=["no folder", "a shard missing", "a shard cut off", "no tokenizer"],
)
def test_a_server_without_a_whole_base_stops_before_a_folder_is_made(
    spoil: Spoil, error: type[Exception], message: str, base: Path
) -> None:
    config = config_of(base)
    spoil(base)
    with pytest.raises(error, match=message):
        run_in_process(config, 2)
    assert not (base.parent / "out").exists()


# -- schemes for gates, with frozen gates --------------------------------------------------------

FROZEN = {"model.gates": False, "scheme": "fedalign", "num-server-rounds": 2}


def test_aligning_frozen_gates_stops_before_a_folder_is_made(base: Path) -> None:
    with pytest.raises(ConfigError, match=r'fedalign.gates = "private".*model.gates = false'):
        run_in_process(config_of(base, **FROZEN), 2)
    assert not (base.parent / "out").exists()


@pytest.mark.parametrize(
    "overrides", [{"fedalign.gates": "average"}, {"fedalign.lam": 0.0}], ids=["average", "no lam"]
)
def test_fedalign_runs_on_frozen_gates_without_aligning_them(
    overrides: dict[str, Any], base: Path
) -> None:
    folder = run_in_process(config_of(base, **FROZEN | overrides), 2)
    lines = read_metrics(folder)
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not any(client["state_lost"] for line in lines[1:] for client in line["clients"])
