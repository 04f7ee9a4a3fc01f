"""Whole runs in one process: real ServerApp, real ClientApps, real text, a real small MoE model."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedmoe_app import ConfigError, ResultsError, read_metrics, run_in_process
from fedmoe_app.report import files
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.server.transport import NotEnoughClientsError
from fedmoe_app.shown import pictures
from tests.conftest import flat_config

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = {
    "num-server-rounds": 2,
    "data.max-train-examples": 240,
    "data.max-test-examples": 64,
    "data.max-length": 24,
    "data.min-partition-size": 10,
}


def run(folder: Path, clients: int = 3, node_configs: Any = None, **overrides: Any) -> Path:
    flat = flat_config(**SMALL | {"output-dir": str(folder)} | overrides)
    return run_in_process(flat, clients, node_configs)


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder)
    for line in lines:
        del line["seconds"]
    return lines


@pytest.fixture(scope="module")
def fedavg_run(no_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "save", pictures.save)
        return run(tmp_path_factory.mktemp("fedavg"), **{"num-server-rounds": 3})


def test_a_run_learns_and_reports_every_round(fedavg_run: Path) -> None:
    lines = read_metrics(fedavg_run)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert all(line["status"] == "ok" for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [c["client"] for c in lines[1]["clients"]] == [0, 1, 2]
    assert lines[1]["bytes_up"] == sum(c["bytes_up"] for c in lines[1]["clients"]) > 0
    assert lines[1]["bytes_down"] == 3 * lines[1]["clients"][0]["bytes_down"] > 0


def test_every_client_tells_where_its_time_went(fedavg_run: Path) -> None:
    for line in read_metrics(fedavg_run)[1:]:
        assert [client["client"] for client in line["seconds"]["clients"]] == [0, 1, 2]
        for seconds in line["seconds"]["clients"]:
            phases = "start download load data apply evaluate train encode upload cpu total"
            assert seconds.keys() == {"client", *phases.split()}
            assert 0 < seconds["train"] < seconds["total"] <= line["seconds"]["train"]
    assert "clients" not in read_metrics(fedavg_run)[0]["seconds"]


def test_the_routing_histogram_counts_two_experts_a_token(fedavg_run: Path) -> None:
    line = read_metrics(fedavg_run)[1]
    for client, counts in zip(line["clients"], line["routing"]["count"], strict=True):
        per_layer = {sum(layer) for layer in counts}
        assert len(counts) == 2  # layers
        assert len(per_layer) == 1  # every layer routes the same tokens
        (routed,) = per_layer
        # Top-2, so 2 a token; a text has between 3 and 24 tokens.
        assert routed % 2 == 0
        assert 2 * 3 * client["num_examples"] <= routed <= 2 * 24 * client["num_examples"]


def test_the_saved_model_loads_in_plain_transformers(fedavg_run: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(fedavg_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(fedavg_run / "model")
    with torch.no_grad():
        logits = model(**tokenizer("Return a tensor filled with ones.", return_tensors="pt")).logits
    assert logits.shape == (1, 8)
    assert model.config.id2label[3] == "torch"


def test_the_folder_holds_config_and_plots(fedavg_run: Path) -> None:
    names = {path.name for path in fedavg_run.iterdir()}
    assert {"config.toml", "metrics.jsonl", "model", "report.html"} <= names
    assert 'class="state complete"' in (fedavg_run / "report.html").read_text()
    drawn = [path for path in fedavg_run.iterdir() if path.suffix == ".png"]
    assert len(drawn) >= 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_one_seed_gives_the_same_metrics_twice(fedavg_run: Path, tmp_path: Path) -> None:
    again = run(tmp_path, **{"num-server-rounds": 3})
    assert without_times(again) == without_times(fedavg_run)


def test_another_seed_gives_others(fedavg_run: Path, tmp_path: Path) -> None:
    other = run(tmp_path, seed=43)
    assert without_times(other)[1] != without_times(fedavg_run)[1]


def test_fedmoe_sends_only_the_chosen_experts(fedavg_run: Path, tmp_path: Path) -> None:
    overrides = {"scheme": "fedmoe", "fedmoe.experts-per-client": 2, "num-server-rounds": 1}
    line = read_metrics(run(tmp_path, **overrides))[1]
    assert all(c["experts_sent"] <= 2 * 2 for c in line["clients"])
    full = read_metrics(fedavg_run)[1]
    assert all(c["experts_sent"] > 2 * 2 for c in full["clients"])
    assert line["bytes_up"] < full["bytes_up"]


def test_fedprox_with_mu_zero_is_fedavg(fedavg_run: Path, tmp_path: Path) -> None:
    overrides = {"scheme": "fedprox", "fedprox.proximal-mu": 0.0, "num-server-rounds": 3}
    assert without_times(run(tmp_path, **overrides)) == without_times(fedavg_run)


def test_a_strong_proximal_term_holds_the_model_back(fedavg_run: Path, tmp_path: Path) -> None:
    overrides = {"scheme": "fedprox", "fedprox.proximal-mu": 100.0, "num-server-rounds": 3}
    held, free = read_metrics(run(tmp_path, **overrides)), read_metrics(fedavg_run)
    assert held[3]["train_loss"] > free[3]["train_loss"]


@pytest.mark.parametrize("preset", ["olmoe-tiny", "switch-tiny"])
def test_families_without_a_head_classify_by_label_words(preset: str, tmp_path: Path) -> None:
    lines = read_metrics(run(tmp_path, **{"model.name": preset}))
    assert lines[2]["train_loss"] < lines[1]["train_loss"]


# -- own data ----------------------------------------------------------------------------------


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def questions(number: int) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Add {i} and {i + 1}, please.",
            "response": f"The sum is {2 * i + 1}.",
            "domain": ("sums", "sums", "more sums")[i % 3],
        }
        for i in range(number)
    ]


LM = {"data.task": "causal-lm", "data.partition": "natural", "data.partition-by": "domain"}


def test_causal_lm_on_an_own_file_lowers_the_loss_and_generates(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl.gz", questions(90))
    test = write_lines(tmp_path / "test.jsonl", questions(12))
    overrides = LM | {"data.source": str(train), "data.test-source": str(test)}
    folder = run(tmp_path / "out", clients=2, **overrides)
    lines = read_metrics(folder)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["metric"] == "token accuracy"
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer("Add 1 and 2, please.", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt.input_ids.shape[1]


TWO = [{"text": f"good day number {i}", "label": "yes"} for i in range(30)] + [
    {"text": f"bad night number {i}", "label": "no"} for i in range(30)
]
OWN = {"data.source": "nodes", "data.label-names": "yes,no", "data.max-train-examples": 0}


def test_nodes_may_bring_their_own_files(tmp_path: Path) -> None:
    """No data on the server: the clients' own hold-outs score the global model."""
    nodes = [
        {"partition-id": 7, "data-path": str(write_lines(tmp_path / "a.jsonl", TWO))},
        {"partition-id": 2, "data-path": str(write_lines(tmp_path / "b.jsonl", TWO[10:50]))},
    ]
    lines = read_metrics(run(tmp_path / "out", node_configs=nodes, **OWN))
    assert [c["client"] for c in lines[1]["clients"]] == [2, 7]
    assert lines[0]["loss"] is None
    assert math.isfinite(lines[1]["loss"])


def test_a_label_that_no_client_has_is_no_fault(tmp_path: Path) -> None:
    overrides = OWN | {"data.label-names": "yes,no,maybe"}
    nodes = [
        {"partition-id": i, "data-path": str(write_lines(tmp_path / "a.jsonl", TWO))}
        for i in (0, 1)
    ]
    assert read_metrics(run(tmp_path / "out", node_configs=nodes, **overrides))[1]["status"] == "ok"


def test_a_client_with_one_example_trains_on_it_and_has_no_accuracy(tmp_path: Path) -> None:
    nodes = [
        {"partition-id": 0, "data-path": str(write_lines(tmp_path / "a.jsonl", TWO[:1]))},
        {"partition-id": 1, "data-path": str(write_lines(tmp_path / "b.jsonl", TWO))},
    ]
    line = read_metrics(run(tmp_path / "out", node_configs=nodes, **OWN))[1]
    assert line["clients"][0]["num_examples"] == 1
    assert line["clients"][0]["accuracy"] is None
    assert line["clients"][1]["accuracy"] is not None


def test_an_empty_partition_fails_alone_and_is_named(tmp_path: Path) -> None:
    """Two classes and Dirichlet 0.01 over six clients leave some with nothing."""
    file = write_lines(tmp_path / "a.jsonl", TWO)
    overrides = {"data.source": str(file), "data.alpha": 0.01, "data.min-partition-size": 0}
    line = read_metrics(run(tmp_path / "out", clients=6, **overrides))[1]
    empty = {f"client {i}" for i in range(6)} - {f"client {c['client']}" for c in line["clients"]}
    failed = {f["who"]: f["reason"] for f in line["failures"] if "evaluation" not in f["who"]}
    assert failed.keys() == empty != set()
    assert all("is empty" in reason for reason in failed.values())


def test_a_partition_size_that_cannot_be_met_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"min-partition-size = 200"):
        run(tmp_path, **{"data.min-partition-size": 200, "max-failed-rounds": 1})


def test_a_node_with_a_broken_file_fails_alone_and_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine", "label": "yes"}\n{"text": "torn\n')
    nodes = [
        {"partition-id": 0, "data-path": str(broken)},
        {"partition-id": 1, "data-path": str(write_lines(tmp_path / "b.jsonl", TWO))},
        {"partition-id": 2, "data-path": str(write_lines(tmp_path / "c.jsonl", TWO))},
    ]
    line = read_metrics(run(tmp_path / "out", node_configs=nodes, **OWN))[1]
    assert [c["client"] for c in line["clients"]] == [1, 2]
    assert "broken.jsonl" in line["failures"][0]["reason"]


def test_text_longer_than_the_context_is_cut_and_counted(tmp_path: Path) -> None:
    line = read_metrics(run(tmp_path, **{"data.max-length": 8, "num-server-rounds": 1}))[1]
    assert all(c["num_truncated"] > 0 for c in line["clients"])


@contextmanager
def after_round(action: Callable[[int], None]) -> Iterator[None]:
    """Call the action whenever a round has been written down."""
    append = RunFolder.append

    def append_and_act(self: RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        action(line["round"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", append_and_act)
        yield


# -- what stops a run --------------------------------------------------------------------------


def test_a_failed_run_raises_and_keeps_the_folder(tmp_path: Path) -> None:
    nodes = [{"partition-id": i} for i in range(2)]  # neither a partition nor a file
    with pytest.raises(RunFailedError, match="data-path"):
        run(tmp_path, node_configs=nodes, **{"max-failed-rounds": 1})
    (folder,) = tmp_path.iterdir()
    assert [line["status"] for line in read_metrics(folder)] == ["ok", "failed"]
    assert not (folder / "model").exists()
    assert 'class="state failed"' in (folder / "report.html").read_text()


def test_a_run_that_fails_late_keeps_the_model_of_its_last_good_round(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", TWO)

    def vanish(number: int) -> None:
        """Take the clients' data away after their first round."""
        if number == 1:
            file.unlink()

    nodes = [{"partition-id": i, "data-path": str(file)} for i in (0, 1)]
    with pytest.raises(RunFailedError, match=r"a\.jsonl"), after_round(vanish):
        run(tmp_path / "out", node_configs=nodes, **OWN, **{"max-failed-rounds": 1})
    (folder,) = (tmp_path / "out").iterdir()
    assert [line["status"] for line in read_metrics(folder)] == ["ok", "ok", "failed"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (folder / "accuracy.png").is_file()


def test_too_few_nodes_stop_before_training(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughClientsError, match="1 of min-clients = 2"):
        run(tmp_path, clients=1, **{"wait-for-clients": 0})


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"scheme": "fedmoe", "fedmoe.experts-per-client": 9}, ConfigError, "choose 1 to 8"),
        ({"data.source": "nodes"}, ConfigError, "name at least two"),
        ({"data.source": "/no/such/file.jsonl"}, ValueError, r"/no/such/file\.jsonl"),
        ({"model.name": "no-such-model"}, ValueError, "no-such-model.*qwen3moe-tiny"),
        ({"model.name": "olmoe-tiny", "model.head": "sequence"}, ValueError, "label-words"),
    ],
)
def test_a_wrong_config_stops_before_a_folder_is_made(
    overrides: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, **overrides)
    assert list(tmp_path.iterdir()) == []


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ResultsError, match="choose another run-name"):
        run(tmp_path, **{"run-name": "mine"})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
