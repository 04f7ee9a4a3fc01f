"""A run that was interrupted and resumed is the run that was not: bit for bit, in process.

Bytes that are sent down are the same where each message holds the whole state. Else they are more
in the first round after the checkpoint, which does not say what the nodes have.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedmoe_app import ConfigError, ResultsError, read_metrics, read_status, run_in_process
from fedmoe_app.results.folder import CHECKPOINTS, METRICS_FILE, RunFolder, list_checkpoints
from fedmoe_app.server.recorder import Checkpoints
from tests.conftest import flat_config
from tests.homes import home_with_cache, kept_files
from tests.toy import write_topics

CLIENTS = 2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    return home


def config(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Three short rounds on toy texts; the same file for every run of a test."""
    source = folder / "topics.jsonl"
    if not source.exists():
        write_topics(source, 12)
    return flat_config(
        **{
            "num-server-rounds": 3,
            "output-dir": str(folder / "out"),
            "data.source": str(source),
            "data.test-source": str(source),
            "data.max-length": 12,
            "train.max-steps": 2,
            "diagnostics": False,
        }
        | overrides
    )


@contextmanager
def interrupted(what: type, method: str, server_round: int) -> Iterator[None]:
    """Press Ctrl-C when a method has been called for a round."""
    original = getattr(what, method)

    def act(self: Any, told: Any) -> None:
        original(self, told)
        if (told["round"] if isinstance(told, dict) else told.server_round) == server_round:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(what, method, act)
        yield


AFTER_CHECKPOINT, BEFORE_CHECKPOINT = (Checkpoints, "on_round"), (RunFolder, "append")


def interrupt(flat: dict[str, Any], where: tuple[type, str], server_round: int = 1) -> Path:
    """Run until a round, and return the result folder."""
    with interrupted(*where, server_round):
        run_in_process(flat, CLIENTS)
    return Path(flat["output-dir"]) / flat["run-name"]


def resume(flat: dict[str, Any], path: Path) -> Path:
    return run_in_process(flat | {"resume": str(path)}, CLIENTS)


def lines_without(folder: Path, *keys: str) -> list[dict[str, Any]]:
    """Return the lines without figures of these names, neither of the round nor of clients."""

    def cut(table: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in table.items() if key not in keys}

    lines = [cut(line) for line in read_metrics(folder)]
    return [line | {"clients": [cut(c) for c in line.get("clients", [])]} for line in lines]


def assert_same_run(folder: Path, other: Path, whole_messages: bool) -> None:
    varying = ("seconds",) if whole_messages else ("seconds", "bytes_down")
    assert lines_without(folder, *varying) == lines_without(other, *varying)
    mine, theirs = (load_file(f / "model" / "model.safetensors") for f in (folder, other))
    assert mine.keys() == theirs.keys()
    assert all(bool((tensor == theirs[name]).all()) for name, tensor in mine.items())


# scheme: its keys, rounds in all, and where Ctrl-C is pressed in the last but one
SCHEMES = {
    "fedavg": ({}, 2, BEFORE_CHECKPOINT),
    "fedalign": ({"fedalign.gates": "private"}, 2, AFTER_CHECKPOINT),
    "fcmoe": ({"fcmoe.retention": "filtered"}, 3, BEFORE_CHECKPOINT),
    "pflmoe": ({"wire.downloads": "full"}, 2, AFTER_CHECKPOINT),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_resumed_run_is_the_uninterrupted_one(scheme: str, tmp_path: Path, home: Path) -> None:
    overrides, rounds, where = SCHEMES[scheme]
    flat = config(tmp_path, scheme=scheme, **overrides | {"num-server-rounds": rounds})
    whole = run_in_process(flat | {"run-name": "whole"}, CLIENTS)
    stopped = interrupt(flat | {"run-name": "stopped"}, where, rounds - 1)
    assert read_metrics(stopped)[-1]["round"] == rounds - 1
    # A line that was written after the last checkpoint is cut off and written again.
    last = rounds - 1 if where == AFTER_CHECKPOINT else rounds - 2
    assert list_checkpoints(stopped)[0].name == f"round-{last:05d}"
    assert read_status(stopped)["state"] == "interrupted"
    assert bool(kept_files(home)) == (scheme != "fedavg")
    assert resume(flat, stopped) == stopped
    assert_same_run(stopped, whole, flat["wire.downloads"] == "full")
    assert read_status(stopped)["state"] == "completed"
    assert kept_files(home) == []


def test_a_run_set_back_to_a_named_checkpoint_ends_the_same(tmp_path: Path) -> None:
    """The evaluation that was put off at the checkpoint is made up for; old ones are pruned."""
    flat = config(tmp_path, **{"run-name": "run", "evaluate-every": 2, "keep-checkpoints": 3})
    curves = find_spec("tensorboard") is not None
    flat["track"] = "tensorboard" if curves else ""
    folder = run_in_process(flat, CLIENTS)
    assert [path.name[-1] for path in list_checkpoints(folder)] == ["3", "2", "1"]
    shutil.copytree(folder, tmp_path / "before")
    assert resume(flat, folder / CHECKPOINTS / "round-00001") == folder
    assert_same_run(folder, tmp_path / "before", whole_messages=False)
    events = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "round-done"] == [0, 1, 2, 3, 2, 3]
    assert [e["round"] for e in events if e["event"] == "resumed"] == [1]
    totals = [client["total"] for client in read_metrics(folder)[3]["seconds"]["clients"]]
    assert len(totals) == CLIENTS
    assert min(totals) > 0
    assert (folder / "tensorboard").is_dir() == curves
    assert read_status(folder)["num_partitions"] == CLIENTS


# -- what is refused ---------------------------------------------------------------------------


def test_another_config_model_or_data_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    flat = config(tmp_path, **{"run-name": "run"})
    folder = interrupt(flat, AFTER_CHECKPOINT, 0)
    before = (folder / METRICS_FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"seed = 42, now 43.*model tensor \S+: .*, now"):
        resume(flat | {"seed": 43, "model.name": "qwen3moe-small"}, folder)
    with (tmp_path / "topics.jsonl").open("a") as file:
        file.write('{"text": "x y", "label": "sea"}\n')
    with pytest.raises(ConfigError, match="data fingerprint: "):
        resume(flat, folder)
    with pytest.raises(ConfigError, match='resume = "here": must be an absolute path'):
        resume(flat, Path("here"))
    assert (folder / METRICS_FILE).read_bytes() == before


def test_a_folder_in_which_a_run_goes_on_is_refused(tmp_path: Path) -> None:
    flat = config(tmp_path, **{"run-name": "run"})
    folder = interrupt(flat, AFTER_CHECKPOINT, 0)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    with pytest.raises(ResultsError, match="still running"):
        resume(flat, folder)


def test_a_run_that_cannot_begin_leaves_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that cannot be opened, say: nothing must say for ever that the run goes on."""

    def closed(*_: object) -> None:
        raise OSError("the tracker's server does not answer")

    monkeypatch.setattr("fedmoe_app.server.recorder.open_trackers", closed)
    before = set(threading.enumerate())  # other tests' own may still be ending
    with pytest.raises(OSError, match="does not answer"):
        run_in_process(config(tmp_path, **{"run-name": "run"}), CLIENTS)
    assert not (tmp_path / "out" / "run" / "status.json").exists()
    started = set(threading.enumerate()) - before
    assert not [thread for thread in started if thread.name == "fedmoe-status"]
