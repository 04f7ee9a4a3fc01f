"""Whole runs in which every node holds only the experts that were chosen for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError, parse_run_config, read_metrics, run_in_process
from fedmoe_app.client.memory import GIB, estimate
from fedmoe_app.client.placement import choose
from fedmoe_app.tasks.setup import load_setup
from fedmoe_app.wire.update import Placement
from tests.bases import save_base
from tests.conftest import flat_config
from tests.server.test_resume import AFTER_CHECKPOINT, assert_same_run, interrupted

EXPERTS, TOP_K, LAYERS = 8, 2, 2
BUDGETS = (2, 4, 8)
ROWS = [
    {"text": f"{kind} day number {i}", "label": "yes" if kind == "good" else "no"}
    for i in range(20)
    for kind in ("good", "bad")
]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the rounds."""
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8 experts a layer in the hub's format, in several files, with data beside it."""
    folder = tmp_path_factory.mktemp("base")
    model = save_base(folder / "model", "Qwen3Moe", num_experts=EXPERTS)
    (folder / "model" / "model.safetensors").unlink()
    model.save_pretrained(folder / "model", max_shard_size="40KB")
    assert (folder / "model" / "model.safetensors.index.json").is_file()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def config_of(base: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model.name": str(base / "model"),
        "model.head": "label-words",
        "model.train": "experts",
        "model.experts-in-memory": "chosen",
        "scheme": "hfedmoe",
        "hfedmoe.selection": "round",
        "data.source": str(base / "rows.jsonl"),
        "data.test-source": str(base / "rows.jsonl"),
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 2,
        "output-dir": str(folder),
        "run-name": "run",
    }
    return flat_config(**config | overrides)


def nodes_of(*budgets: int) -> list[dict[str, Any]]:
    return [
        {"partition-id": i, "num-partitions": len(budgets), "expert-budget": budget}
        for i, budget in enumerate(budgets)
    ]


def run(base: Path, folder: Path, budgets: tuple[int, ...] = BUDGETS, **overrides: Any) -> Path:
    config = config_of(base, folder, **overrides)
    return run_in_process(config, len(budgets), nodes_of(*budgets))


def clients_of(lines: list[dict[str, Any]], key: str) -> list[list[Any]]:
    """Return a figure of every client by round."""
    return [[client[key] for client in line["clients"]] for line in lines[1:]]


@pytest.mark.parametrize(
    "train",
    [
        "experts",
        pytest.param("expert-lora", marks=pytest.mark.slow),
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_bytes_shrink_with_the_budget(base: Path, tmp_path: Path, train: str) -> None:
    # Sent in full each time: what a node has already would not count.
    lines = read_metrics(run(base, tmp_path, **{"model.train": train, "wire.downloads": "full"}))
    assert [(line["status"], line["failures"]) for line in lines] == [("ok", [])] * 3
    assert clients_of(lines, "expert_budget") == [list(BUDGETS)] * 2
    for held, down, up, trained in zip(
        clients_of(lines, "experts_held"),
        clients_of(lines, "bytes_down"),
        clients_of(lines, "bytes_up"),
        [torch.tensor(line["routing"]["trained"]) > 0 for line in lines[1:]],  # [N, L, E]
        strict=True,
    ):
        assert held[0] == TOP_K * LAYERS
        assert held[0] < held[1] <= BUDGETS[1] * LAYERS
        assert down[0] < down[1] <= down[2]
        assert up[0] < up[2]
        assert all(int(mask.sum()) <= count for mask, count in zip(trained, held, strict=True))
        # Beside what all get, bytes are those of the held experts, the same for each.
        each = (down[1] - down[0]) / (held[1] - held[0])
        for size, count in zip(down, held, strict=True):
            assert size == pytest.approx(down[0] + each * (count - held[0]), rel=0.001)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_nodes_that_hold_all_experts_give_the_same_model(base: Path, tmp_path: Path) -> None:
    """The whole path against the plain one: same choice, same training, same fold."""
    overrides: dict[str, Any] = {"scheme": "fedmoe", "fedmoe.experts-per-client": EXPERTS}
    overrides["num-server-rounds"] = 1
    folders = [
        run(base, tmp_path / kind, (8, 8), **overrides | {"model.experts-in-memory": kind})
        for kind in ("chosen", "all")
    ]
    mine, other = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4, msg=name)
    scores = [[line["accuracy"] for line in read_metrics(folder)] for folder in folders]
    assert scores[0] == scores[1]


def test_one_seed_gives_one_run_and_nodes_score_what_they_hold(base: Path, tmp_path: Path) -> None:
    """Without a test set on the server."""
    overrides: dict[str, Any] = {"data.test-source": "", "num-server-rounds": 1}
    runs = [read_metrics(run(base, tmp_path / name, (2, 4), **overrides)) for name in "ab"]
    for line in (*runs[0], *runs[1]):
        line.pop("seconds")
    assert runs[0] == runs[1]
    assert [line["accuracy"] is not None for line in runs[0]] == [False, True]


@pytest.mark.parametrize("downloads", ["full", pytest.param("changed", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one(base: Path, tmp_path: Path, downloads: str) -> None:
    """What the nodes chose is in the checkpoint; asked again, they would choose by other values."""
    whole, stopped = (
        config_of(base, tmp_path, **{"run-name": name, "wire.downloads": downloads})
        for name in ("whole", "stopped")
    )
    nodes = nodes_of(2, 4)
    expected = run_in_process(whole, 2, nodes)
    with interrupted(*AFTER_CHECKPOINT, 1):
        run_in_process(stopped, 2, nodes)
    folder = run_in_process(stopped | {"resume": str(tmp_path / "stopped")}, 2, nodes)
    assert_same_run(folder, expected, downloads == "full")


@pytest.mark.slow
def test_in_four_bits(base: Path, tmp_path: Path) -> None:
    sizes = dict(hidden_size=64, intermediate_size=64, moe_intermediate_size=64, head_dim=16)
    save_base(tmp_path / "model", "Qwen3Moe", num_experts=EXPERTS, **sizes)
    overrides = {
        "model.name": str(tmp_path / "model"),
        "model.train": "expert-lora",
        "model.quantization": "nf4",
        "num-server-rounds": 1,
    }
    line = read_metrics(run(base, tmp_path, (2, 4), **overrides))[-1]
    assert (line["status"], line["failures"]) == ("ok", [])
    assert line["clients"][0]["experts_held"] == TOP_K * LAYERS


def test_what_is_wrong_with_a_node_stays_with_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget below top-k, too little memory, a choice that does not hold what it says."""

    def choose_too_few(scheme: Any, client: Any) -> Placement:
        placement = choose(scheme, client)
        if client.client == 4:
            placement.experts[1] = False
        return placement

    monkeypatch.setattr("fedmoe_app.client.round.choose", choose_too_few)
    nodes = nodes_of(1, 4, 4, 4, 4)
    nodes[1]["memory-budget"] = 0.25
    config = config_of(base, tmp_path, **{"num-server-rounds": 1})
    line = read_metrics(run_in_process(config, 5, nodes))[-1]
    assert line["status"] == "ok"
    assert [client["client"] for client in line["clients"]] == [2, 3]
    reasons = {failure["who"]: failure["reason"] for failure in line["failures"]}
    assert reasons.keys() == {"client 0", "client 1", "client 4"}
    assert "a budget of 1 experts a layer: a token uses 2" in reasons["client 0"]
    assert "memory-budget = 0.25: about 0.3" in reasons["client 1"]
    assert "choice.held: 0 experts of MoE layer 1; a token uses 2" in reasons["client 4"]


def test_a_budget_of_memory_is_one_of_experts(base: Path, tmp_path: Path) -> None:
    """What fits is worked out, and bounds the node's own number."""
    config = parse_run_config(config_of(base, tmp_path))
    need = estimate(load_setup(config, ("no", "yes")), config)
    nodes = nodes_of(8, 8, 3)
    nodes[0].pop("expert-budget")
    for node in nodes:
        node["memory-budget"] = (need.total(5) + need.per_expert // 2) / GIB
    flat = config_of(base, tmp_path, **{"num-server-rounds": 1})
    line = read_metrics(run_in_process(flat, 3, nodes))[-1]
    assert [client["expert_budget"] for client in line["clients"]] == [5, 5, 3]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"model.name": "qwen3moe-tiny"}, "is a preset, made in memory"),
        ({"scheme": "fedavg"}, 'scheme = "fedavg" does not choose experts once a round'),
        ({"hfedmoe.selection": "batch"}, 'hfedmoe.selection = "round"'),
        (
            {"scheme": "combine", "combine.selection": "fedmoe", "combine.gates": "fedalign"},
            "keeps tensors on the nodes",
        ),
    ],
)
def test_a_run_that_cannot_work_stops_before_a_node_is_asked(
    base: Path, tmp_path: Path, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        run(base, tmp_path, **overrides)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_quantised_or_incomplete_is_refused(
    base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base / "model", folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"quantised already \(mxfp4\)"):
        run(base, tmp_path, **{"model.name": str(folder)})
    shutil.copy(base / "model" / "config.json", folder)
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ConfigError, match="weight files are missing, such as model-00002"):
        run(base, tmp_path, **{"model.name": str(folder)})
