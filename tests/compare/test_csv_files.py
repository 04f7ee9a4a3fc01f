import csv
import io

import pytest

from fedmoe_app.compare.summary import results_of, summarise
from fedmoe_app.compare.tables import cells_csv, summary_csv
from tests.compare.fakes import broken, example


def test_cells_csv() -> None:
    plan, outcomes = example()
    rows = list(csv.DictReader(io.StringIO(cells_csv(results_of(plan, outcomes)))))
    assert len(rows) == 10
    assert rows[3] == {
        "scheme": "fedprox",
        "partition": "iid",
        "seed": "1",
        "status": "ok",
        "accuracy": "0.77",
        "loss": "0.0",
        "initial_loss": "2.0",
        "macro_f1": "",
        "local_accuracy_mean": "0.6",
        "local_accuracy_variance": rows[2]["local_accuracy_variance"],
        "rounds_to_90": "1",
        "rounds_to_95": "2",
        "bytes_up_per_round": "20.0",
        "bytes_up_total": "40",
        "seconds": "4.5",
        "failed_rounds": "0",
        "missing_replies": "0",
        "cell": plan.cells[3].key,
        "failure": "",
    }
    assert float(rows[3]["local_accuracy_variance"]) == pytest.approx(0.01)
    assert (rows[9]["status"], rows[9]["accuracy"]) == ("failed", "")
    assert (rows[9]["cell"], rows[9]["failure"]) == (plan.cells[9].key, "ValueError: a | b")


def test_summary_csv() -> None:
    plan, outcomes = example()
    text = summary_csv(summarise(plan, results_of(plan, outcomes)))
    row = list(csv.DictReader(io.StringIO(text)))[2]
    assert (row["scheme"], row["partition"], row["runs"], row["failed"]) == (
        "fedprox",
        "iid",
        "2",
        "0",
    )
    assert float(row["accuracy_mean"]) == pytest.approx(0.785)
    assert (row["accuracy_seeds"], row["failed_rounds"], row["missing_replies"]) == ("2", "0", "0")
    assert float(row["difference_mean"]) == pytest.approx(0.135)
    assert (row["rounds_to_90"], row["reached_90"], row["reached_90_of"]) == ("1.0", "1", "2")
    first = list(csv.DictReader(io.StringIO(text)))[1]
    assert (first["difference_mean"], first["rounds_to_90"], first["reached_90"]) == ("", "", "0")


def test_a_broken_run_is_not_ok() -> None:
    plan, outcomes = broken()
    results = results_of(plan, outcomes)
    first, second, _ = csv.DictReader(io.StringIO(cells_csv(results)))
    assert (first["status"], first["failed_rounds"], first["missing_replies"]) == ("ok", "0", "2")
    assert (second["status"], second["accuracy"], second["initial_loss"]) == ("failed", "", "2.0")
    assert (second["failed_rounds"], second["missing_replies"]) == ("1", "2")
    assert second["failure"].endswith("round 2: 1 usable reply of 2; c1: NaN")
    (row,) = csv.DictReader(io.StringIO(summary_csv(summarise(plan, results))))
    assert (row["runs"], row["failed"], row["accuracy_seeds"]) == ("2", "1", "2")
    assert (row["failed_rounds"], row["missing_replies"]) == ("0", "3")
