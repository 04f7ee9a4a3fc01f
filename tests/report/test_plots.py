"""The picture files of a run: which there are, and that they show the run's numbers."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmoe_app import ResultsError
from fedmoe_app.report.plots import most_trained, pictures_of, plot_run
from fedmoe_app.results.folder import RunFolder
from tests.report.html.runs import line
from tests.report.lines import Line, failed, full, plain, run, start
from tests.report.schema import check

NAN = np.nan
ALWAYS = ["accuracy"]
TRAINED = ["accuracy", "bytes", "routing"]
INSIDE = ["conflict", "consistency", "similarity", "selection", "weights"]
HEADS = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


def finished(lines: list[Line]) -> list[Line]:
    """Lines with the figures that every run has."""
    figures = {"accuracy": 0.5, "loss": 1.0, "bytes_up": 1, "bytes_down": 2}
    return [figures | each for each in lines]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([line(0)], ALWAYS),
        ([line(0), line(1, (0,))], TRAINED),
        ([line(0), line(1), line(2, ()) | {"status": "failed"}, line(3)], TRAINED),
        ([line(0), line(1, ()) | {"status": "failed"}], ["accuracy", "bytes"]),
        ([line(0), line(1, tuple(range(50)), 3, 64)], TRAINED),
        (finished(run(2, 4, 2, 8)), TRAINED + INSIDE),
        (finished(run(1, 1, 1, 4)), TRAINED + [n for n in INSIDE if n != "similarity"]),
        (finished([start(), failed(1), full(2, 3, 2, 4, untrained=0.6), plain(4)]),
         TRAINED + INSIDE),
        (finished(run(1, 40, 16, 64, untrained=0.2, matrices=False)), TRAINED + INSIDE),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_run_has_the_pictures_that_it_has_numbers_for(
    lines: list[Line], names: list[str]
) -> None:
    specs = pictures_of(lines)
    assert list(specs) == names
    for spec in specs.values():
        check(spec)


def test_files_of_each_kind_are_written_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    for each in (line(0), line(1)):
        folder.append(each)
    paths = plot_run(folder.path, ("png", "svg", "pdf"))
    assert [path.name for path in paths][:3] == ["accuracy.png", "accuracy.svg", "accuracy.pdf"]
    assert [path.stem for path in paths[::3]] == TRAINED
    for path in paths:
        assert path.read_bytes().startswith(HEADS[path.suffix])
    assert min(size(folder.path / "accuracy.png")) > 300
    assert not list(folder.path.glob(".*.png"))


def test_an_empty_run_has_nothing_to_draw(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    (folder.path / "metrics.jsonl").touch()
    with pytest.raises(ResultsError, match="nothing to draw yet"):
        plot_run(folder.path)


def test_a_run_is_not_lost_for_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.append(line(0))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with caplog.at_level(logging.WARNING, logger="fedmoe"):
        assert plot_run(folder.path) == []
    assert "pictures cannot be drawn" in caplog.text


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All heat maps of a picture, in order."""
    if "concat" in spec:
        return [panel for each in spec["concat"] for panel in panels(each)]
    if "vconcat" in spec:
        return [panel for each in spec["vconcat"] for panel in panels(each)]
    return [spec] if "row" in str(spec.get("encoding", {}).get("y")) else []


def grid(panel: dict[str, Any]) -> list[list[float | None]]:
    """The numbers of a map, a list a row."""
    rows: dict[str, list[float | None]] = {}
    for cell in panel["data"]["values"]:
        rows.setdefault(cell["row"], []).append(cell["v"])
    return list(rows.values())


def test_routing_has_a_panel_a_layer_of_the_last_round() -> None:
    lines = [line(0), line(1, (0, 2), 2, 2), line(2, (2,), 2, 2)]
    spec = pictures_of(lines)["routing"]
    first, second = panels(spec)
    assert [each["title"] for each in (first, second)] == ["MoE layer 0", "MoE layer 1"]
    # Client 2 sent 2 and 3 tokens; client 0 was not in round 2 and has no row.
    assert grid(first) == [[0.4, 0.6], [0.4, 0.6]]
    assert first["encoding"]["y"]["scale"]["domain"] == ["all clients", "2"]
    assert "round 2; equal use: 1/2 = 50.0 %" in str(spec)


def test_many_layers_are_cut_down_with_a_word() -> None:
    specs = pictures_of(finished(run(1, 40, 16, 64, untrained=0.1, matrices=False)))
    for name in ("consistency", "weights"):
        assert len(panels(specs[name])) == 8
        assert "8 of 16 layers" in str(specs[name])


def test_the_selection_names_the_budgets() -> None:
    clients = [{"client": 2, "num_steps": 4, "expert_budget": 1, "selection_ratio": 0.75},
               {"client": 7, "num_steps": 4}]  # fmt: skip
    entry = plain(1) | {"clients": clients, "routing": {"trained": [[[4, 0]], [[2, 2]]]}}
    (panel,) = panels(pictures_of(finished([start(), entry]))["selection"])
    assert grid(panel) == [[1, 0], [0.5, 0.5]]
    assert panel["encoding"]["y"]["scale"]["domain"] == ["2 (1)", "7"]
    assert panel["encoding"]["y"]["title"] == "client (expert budget)"


def test_where_nobody_chose_there_is_no_selection() -> None:
    clients = [{"client": 0, "num_steps": 4, "expert_budget": None, "selection_ratio": None}]
    entry = plain(1) | {"clients": clients, "routing": {"trained": [[[4, 0]]]}}
    assert "selection" not in pictures_of(finished([start(), entry]))


def test_pairs_are_of_the_first_and_the_last_layer_and_four_experts() -> None:
    shown = panels(pictures_of(finished(run(2, 5, 3, 8)))["similarity"])
    expected = [f"MoE layer {layer}, expert {expert}" for layer in (0, 2) for expert in range(4)]
    assert [panel["title"] for panel in shown] == expected * 2


def test_experts_with_most_clients_come_first() -> None:
    both, one, none = np.eye(2), np.array([[1.0, NAN], [NAN, NAN]]), np.full((2, 2), NAN)
    matrices = np.stack([one, both, none, both, both], axis=-1)
    assert most_trained(matrices, 4) == [1, 3, 4]
    assert most_trained(matrices, 2) == [1, 3]
