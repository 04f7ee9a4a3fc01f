import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmoe_app import ResultsError, default_run_config, read_metrics
from fedmoe_app.report.page import write_page
from fedmoe_app.results.folder import (
    LINE_KEYS,
    SAMPLES_FILE,
    RunFolder,
    keep_rounds,
    nest,
    read_rounds,
)

REPOSITORY = Path(__file__).parents[2]


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    for number in range(3):
        folder.append({"round": number, "loss": 0.5 * number})
    expected = [{"round": number, "loss": 0.5 * number} for number in range(3)]
    assert read_metrics(folder.path) == expected
    assert read_metrics(folder.path / "metrics.jsonl") == expected


def test_arrays_become_lists_and_nan_becomes_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.append(
        {
            "round": np.int64(1),
            "loss": float("nan"),
            "accuracy": np.float32(0.5),
            "ok": True,
            "at": tmp_path,
            "count": torch.tensor([[1, 2], [3, 4]]),
            "share": np.array([0.25, np.inf]),
        }
    )
    assert read_metrics(folder.path) == [
        {
            "round": 1,
            "loss": None,
            "accuracy": 0.5,
            "ok": True,
            "at": str(tmp_path),
            "count": [[1, 2], [3, 4]],
            "share": [0.25, None],
        }
    ]


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    RunFolder(tmp_path / "old").append({"round": 0})
    with pytest.raises(ResultsError, match=r"old holds files .* choose another run-name"):
        RunFolder(tmp_path / "old")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(ResultsError, match="is a file"):
        RunFolder(tmp_path / "a")


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1')
    assert read_metrics(tmp_path) == [{"round": 0}]


@pytest.mark.parametrize("line", ['{"round": 1', "[1, 2]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n' + line + "\n")
    with pytest.raises(ResultsError, match=r"metrics\.jsonl, line 2: not"):
        read_metrics(tmp_path)


def test_a_line_that_no_run_wrote_is_named(tmp_path: Path) -> None:
    whole = dict.fromkeys(LINE_KEYS, 0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(whole) + '\n{"round": 1}\n')
    with pytest.raises(ResultsError, match=r"line 2 of metrics\.jsonl lacks status, loss, "):
        read_rounds(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file"):
        read_metrics(tmp_path)


def test_config_comes_back_as_flower_reads_it(tmp_path: Path) -> None:
    parse_config_args = pytest.importorskip("flwr.common.config").parse_config_args
    flat = default_run_config() | {"scheme-args": '{"lam": 0.5}'}
    path = RunFolder(tmp_path / "a").write_config(flat)
    assert parse_config_args([str(path)]) == flat
    assert tomllib.loads(path.read_text())["data"]["alpha"] == flat["data.alpha"]


def test_nest() -> None:
    assert nest({"a.b": 1, "c": 2, "a.d": 3}) == {"c": 2, "a": {"b": 1, "d": 3}}


def test_samples_have_their_round_and_none_make_no_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append_samples(0, [])
    assert not (folder.path / SAMPLES_FILE).exists()
    folder.append_samples(0, [{"prompt": "a", "expected": "b", "generated": "ä\nc"}])
    folder.append_samples(2, [{"prompt": "a", "expected": "b", "chosen": "b"}])
    lines = (folder.path / SAMPLES_FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"round": 0, "prompt": "a", "expected": "b", "generated": "ä\nc"},
        {"round": 2, "prompt": "a", "expected": "b", "chosen": "b"},
    ]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_follow_the_umask_but_text_is_private(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        folder = RunFolder(tmp_path / "run")
        folder.append({"round": 0})
        folder.append_samples(0, [{"prompt": "secret"}])
        folder.write_config({"seed": 1})
        keep_rounds(folder.path / SAMPLES_FILE, -1)
        write_page(folder.path, "<p>secret</p>")
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()}
    private = {SAMPLES_FILE: 0o600, "report.html": 0o600}
    assert found == {"metrics.jsonl": mode, "config.toml": mode} | private
