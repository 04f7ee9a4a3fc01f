"""A round's line in metrics.jsonl: what stands in it, and that order of arrival does not."""

import json

from fedmoe_app.results.metrics import RoundRecord
from tests.toy import toy_update


def report() -> RoundRecord:
    return RoundRecord(
        server_round=3,
        updates=(toy_update(0, 10, 0.0, [(0, 1)]), toy_update(2, 30, 2.0, [(0, 1), (1, 2)])),
        failures={"client 4": "out of memory", "client 1": "partition is empty"},
        bytes_up={0: 100, 2: 150},
        bytes_up_total=270,
        bytes_down_to={0: 200, 2: 200},
        bytes_down=800,
        num_asked=4,
        aggregated=True,
        evaluation={"loss": 1.5, "accuracy": 0.25, "items": 40},
        seconds={"round": 1.23456},
    )


def test_a_line_sums_up_the_round() -> None:
    line = report().line
    assert (line["round"], line["status"], line["loss"], line["accuracy"]) == (3, "ok", 1.5, 0.25)
    assert line["train_loss"] == (10 * 1.0 + 30 * 3.0) / 40
    assert (line["bytes_up"], line["bytes_down"]) == (270, 800)
    assert [(c["bytes_up"], c["bytes_down"]) for c in line["clients"]] == [(100, 200), (150, 200)]
    assert [c["experts_sent"] for c in line["clients"]] == [1, 2]
    assert [c["local_accuracy"] for c in line["clients"]] == [None, None]
    assert line["routing"]["count"] == [[[1, 1, 1], [1, 1, 1]]] * 2
    assert line["seconds"] == {"round": 1.235}
    json.dumps(line)


def test_failures_stand_in_a_fixed_order() -> None:
    failures = report().line["failures"]
    assert [failure["who"] for failure in failures] == ["client 1", "client 4"]


def test_a_failed_round_has_no_scores() -> None:
    line = RoundRecord(1, num_asked=2, bytes_down=7).line
    assert (line["status"], line["loss"], line["train_loss"], line["num_clients"]) == (
        "failed",
        None,
        None,
        0,
    )
