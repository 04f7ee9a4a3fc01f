"""The row ``alone`` of a comparison: clients that train by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmoe_app import ConfigError, default_run_config, read_metrics, run_in_process
from fedmoe_app.compare.alone import mean_lines, together
from fedmoe_app.compare.execute import RESULTS, in_process
from fedmoe_app.compare.figures import figures_in
from fedmoe_app.compare.plan import Cell, dirichlet, make_plan, read_schemes
from fedmoe_app.compare.tables import legend
from fedmoe_app.results.classes import Classes, read_classes
from tests.compare.fakes import lines

SMALL = {
    "num-server-rounds": 2,
    "data.max-train-examples": 120,
    "data.max-test-examples": 40,
    "data.max-length": 16,
    "data.min-partition-size": 10,
}


def cell(clients: int) -> Cell:
    shared = default_run_config() | SMALL
    plan = make_plan(
        shared, read_schemes("alone"), dirichlet([0.5], shared), [3], clients, centralised=False
    )
    return plan.cells[0]


def test_figures_are_means_over_the_clients() -> None:
    runs = [lines(0.1, 0.4, 0.6, own=(0.5,)), lines(0.1, 0.2, 0.5, own=(0.9,))]
    found = mean_lines(runs, 2)
    assert [line["accuracy"] for line in found] == [0.1, pytest.approx(0.3), pytest.approx(0.55)]
    assert [client["local_accuracy"] for client in found[-1]["clients"]] == [0.5, 0.9]
    assert [line["seconds"]["round"] for line in found] == [3.0] * 3
    assert {line["bytes_up"] for line in found} == {0}


def test_the_last_line_is_of_the_models_that_are_kept() -> None:
    """One client keeps its round 1 and ends there; the other one goes on to round 3."""
    best = {"by": "accuracy", "round": 1, "value": 0.4, "ended": True}
    early: list[Any] = lines(0.1, 0.4, 0.3)
    early[-1]["best"] = best
    found = mean_lines([early, lines(0.1, 0.2, 0.6, 0.8)], 3)
    assert [line["round"] for line in found] == [0, 1, 2, 3]
    assert found[2]["accuracy"] == pytest.approx(0.45)
    assert found[3]["accuracy"] == pytest.approx(0.6)


def test_a_figure_that_a_client_lacks_has_no_mean() -> None:
    found = mean_lines([lines(0.1, None), lines(0.1, 0.5)], 1)
    assert found[-1]["accuracy"] is None


def test_answers_of_all_clients_are_counted_together() -> None:
    names = ("no", "yes")
    one = Classes(2, names, np.array([[3, 1], [2, 4]]))
    both = together([one, replace(one, confusion=np.array([[1, 3], [0, 6]]))], 2)
    assert both.confusion.tolist() == [[4, 4], [2, 10]]


def test_one_client_alone_is_a_run_of_one_client(tmp_path: Path) -> None:
    asked = cell(1)
    alone = in_process(asked, tmp_path / "alone")
    place = {"output-dir": str(tmp_path / "run"), "run-name": RESULTS}
    run = run_in_process(asked.flat | place, 1)
    for mine, other in zip(read_metrics(alone), read_metrics(run), strict=True):
        assert (mine["accuracy"], mine["loss"]) == (other["accuracy"], other["loss"])


def test_each_client_has_its_own_part_of_the_data(tmp_path: Path) -> None:
    asked = cell(2)
    folder = in_process(asked, tmp_path)
    last = read_metrics(folder)[-1]
    sizes = [client["num_examples"] for client in last["clients"]]
    assert [client["client"] for client in last["clients"]] == [0, 1]
    assert sizes[0] != sizes[1]
    figures = figures_in(folder, read_metrics(folder), 2)
    classes = read_classes(folder)[-1]
    share = classes.confusion.diagonal().sum() / classes.confusion.sum()
    assert figures.accuracy == pytest.approx(share)
    assert classes.support.sum() == 2 * 40


def test_a_file_cannot_take_the_name(tmp_path: Path) -> None:
    file = tmp_path / "alone.toml"
    file.write_text("scheme = 'fedavg'\n")
    with pytest.raises(ConfigError, match="rename the file"):
        read_schemes(f"fedavg,{file}")


def test_tables_say_what_the_row_is() -> None:
    assert "every client trains by itself" in legend("accuracy", ("alone", "fedavg"))
    assert "by itself" not in legend("accuracy", ("fedavg",))
