from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmoe_app import ResultsError
from fedmoe_app.report import facts, settings
from fedmoe_app.results.folder import SAMPLES_FILE
from tests.conftest import flat_config
from tests.report.html.runs import client, line, write_run

LINES = [line(0), line(1), line(2, (1,))]


def fact(name: str, lines: list[dict]) -> facts.Fact:
    return next(f for f in facts.summary(flat_config(), lines, "accuracy") if f.name == name)


def test_the_summary_has_the_last_figures_and_the_sums() -> None:
    assert fact("global accuracy", LINES).value == "0.375"
    assert "0.125 before round 1" in fact("global accuracy", LINES).note
    assert fact("sent up", LINES).value == "300 B"
    assert fact("sent down", LINES).value == "600 B"
    assert fact("clients", LINES).value == "2"
    assert fact("rounds", LINES).value == "2 of 6"
    assert fact("time", LINES).value == "4 s"  # 0.5 + 1.5 + 1.5


def test_an_evaluation_that_was_left_out_is_not_the_last() -> None:
    lines = [*LINES, line(3) | {"accuracy": None, "loss": None}]
    assert fact("global accuracy", lines).value == "0.375"
    assert "after round 2" in fact("global accuracy", lines).note


def test_where_the_global_model_was_scored() -> None:
    assert facts.where_scored(LINES) == "the server's test set"
    without = [line(0) | {"loss": None, "accuracy": None}, line(1)]
    assert facts.where_scored(without) == "the clients' own test examples"


def test_a_client_has_its_last_figures_and_sums() -> None:
    later = line(2, (1,)) | {"clients": [client(1, local_accuracy=0.75, state_lost=True)]}
    first, second = facts.last_of_clients([line(0), line(1), later])
    assert (first["rounds"], first["last_round"], first["up"]) == (1, 1, 100)
    assert (second["rounds"], second["last_round"], second["up"]) == (2, 2, 200)
    assert (second["local_accuracy"], second["lost"]) == (0.75, 1)
    table = facts.clients_table([first, second], "accuracy")
    assert "mixing gate" not in table.headers
    assert [row[table.headers.index("sent up")].text for row in table.rows] == ["100 B", "200 B"]


def test_failures_of_clients_count_and_those_of_rounds_are_marked() -> None:
    failing = line(1) | {
        "status": "failed",
        "failures": [{"who": "client 1", "reason": "no"}, {"who": "round", "reason": "too few"}],
    }
    assert facts.failures([failing]) == [(1, "client 1", "no")]
    table, left = facts.failures_table([failing] * 150)
    assert (len(table.rows), left) == (200, 100)
    assert 1 in table.bad
    assert 0 not in table.bad
    assert facts.rounds_table([line(0), failing], "accuracy").bad == {1}


def test_the_last_samples_are_shown_and_cut(tmp_path: Path) -> None:
    assert facts.last_samples(tmp_path) == (None, [])
    rows = [{"round": r, "prompt": f"p{r}", "expected": "e", "generated": "g"} for r in (0, 0, 3)]
    rows[-1]["generated"] = "x" * 5000
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / SAMPLES_FILE).write_text(text + '{"round": 4, "pro')  # a line being written
    number, found = facts.last_samples(tmp_path)
    assert (number, [sample["prompt"] for sample in found]) == (3, ["p3"])
    assert len(found[0]["generated"]) < 2100


def test_settings_that_differ_come_first() -> None:
    flat = flat_config(**{"data.alpha": 0.1, "output-dir": "/x"})
    found = settings.compare(flat, settings.defaults())
    assert found[0] == ("data.alpha", "0.1", "0.5")
    assert [each.key for each in found if settings.is_notable(each)] == ["data.alpha"]
    assert [each.key for each in found if each.changed] == ["data.alpha", "output-dir"]
    assert not any(each.changed for each in settings.compare(flat, {}))


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"config\.toml: no such file"):
        settings.read_settings(tmp_path)
    folder = write_run(tmp_path / "a", LINES)
    (folder / "config.toml").write_text("scheme = ")
    with pytest.raises(ResultsError, match="not TOML"):
        settings.read_settings(folder)
