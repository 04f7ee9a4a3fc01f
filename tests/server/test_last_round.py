"""A run whose last round failed does not end as if all was well, and can be completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from fedmoe_app import read_metrics, read_status, run_in_process
from fedmoe_app.cli.commands.status import overview
from fedmoe_app.compare.in_process import InProcessGrid
from fedmoe_app.results.status import how_to_resume
from fedmoe_app.server.rounds import RunFailedError
from tests.homes import home_with_cache, kept_files
from tests.server.test_resume import assert_same_run, config, resume


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    return home


def lose_round(number: int) -> pytest.MonkeyPatch:
    """Let no client answer in a round."""
    answer = InProcessGrid._answer

    def lost(self: InProcessGrid, message: Message) -> Message:
        if message.metadata.group_id == str(number):
            return Message(Error(2, "client 0: out of memory"), reply_to=message)
        return answer(self, message)

    patch = pytest.MonkeyPatch()
    patch.setattr(InProcessGrid, "_answer", lost)
    return patch


def test_the_last_round_can_be_repeated(tmp_path: Path, home: Path) -> None:
    flat: dict[str, Any] = config(tmp_path) | {"scheme": "pflmoe", "wire.downloads": "full"}
    calm = run_in_process(flat | {"run-name": "calm"}, 2)
    patch = lose_round(3)
    try:
        with pytest.raises(RunFailedError, match="round 3 of 3 failed, so the model is that of ro"):
            run_in_process(flat | {"run-name": "short"}, 2)
    finally:
        patch.undo()
    folder = tmp_path / "out" / "short"
    assert [line["status"] for line in read_metrics(folder)] == ["ok", "ok", "ok", "failed"]
    status = read_status(folder)
    assert (status["state"], status["round"]) == ("failed", 3)
    assert "state     failed" in overview(folder)
    assert (folder / "model" / "model.safetensors").is_file()
    assert kept_files(home)  # the nodes keep what they need to repeat it
    hint = how_to_resume(folder)
    assert hint == f"fedmoe resume {folder}/checkpoints/round-00002"
    resume(flat | {"run-name": "short"}, Path(hint.split()[-1]))
    assert_same_run(folder, calm, whole_messages=True)
    assert read_status(folder)["state"] == "completed"


def test_a_failed_round_in_the_middle_is_no_reason(tmp_path: Path) -> None:
    patch = lose_round(2)
    try:
        folder = run_in_process(config(tmp_path) | {"run-name": "middle"}, 2)
    finally:
        patch.undo()
    assert [line["status"] for line in read_metrics(folder)] == ["ok", "ok", "failed", "ok"]
    assert read_status(folder)["state"] == "completed"
