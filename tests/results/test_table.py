import io
from typing import Any

import numpy as np
import pytest

from fedmoe_app.results.classes import Classes
from fedmoe_app.results.table import (
    LOG_WIDTH,
    human_bytes,
    print_classes,
    print_table,
    write_classes,
)


def line(round_number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": round_number,
        "status": "ok",
        "loss": 1.23456,
        "accuracy": 0.5,
        "metric": "accuracy",
        "num_clients": 8,
        "bytes_up": 1_234_567,
        "bytes_down": 999,
        "failures": [],
        "seconds": {"round": 12.34},
    } | changes


def printed(*lines: dict[str, Any]) -> list[str]:
    file = io.StringIO()
    print_table(lines, file)
    text = file.getvalue()
    assert "\x1b" not in text
    rows = [row for row in text.splitlines() if row.strip()]
    assert max(map(len, rows)) <= LOG_WIDTH
    return [" ".join(row.split()) for row in rows]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (45_600_000_000, "45.6 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_human_bytes(count: float | None, text: str) -> None:
    assert human_bytes(count) == text


def test_a_row_a_round() -> None:
    rows = printed(line(0, num_clients=0), line(1))
    assert rows[0] == "round loss accuracy bytes up bytes down clients failed seconds"
    assert rows[2] == "0 1.2346 0.5000 - - - - 12.3"
    assert rows[3] == "1 1.2346 0.5000 1.23 MB 999 B 8 0 12.3"


def test_a_node_whose_policy_refuses_has_not_failed() -> None:
    why = "client 3: this node's policy does not allow scheme = 'fcmoe'"
    lost = {"who": "client 4", "reason": "no reply within 60 s"}
    failures = [{"who": "client 3 (evaluation)", "reason": why}, lost]
    assert printed(line(1, failures=failures))[2].split()[-2] == "1"


def test_a_failed_round_is_shown_as_failed() -> None:
    failure = {"client": 3, "reason": "nan"}
    rows = printed(line(1, status="failed", loss=None, accuracy=None, failures=[failure] * 8))
    assert rows[2] == "1 failed - - 1.23 MB 999 B 8 8 12.3"


def test_the_metric_of_the_task_is_the_header() -> None:
    assert "token" in printed(line(0, metric="token accuracy"))[0]


def test_no_lines_give_a_header_only() -> None:
    assert len(printed()) == 2


# Of 4 rows of "a" 2 are taken for "b" and 1 for "c"; "b" is right; nothing is "c".
CLASSES = Classes(3, ("a", "b", "c"), np.array([[1, 2, 1], [0, 2, 0], [0, 0, 0]]))


def test_a_row_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    print_classes(CLASSES)
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines() if row.strip()]
    assert rows[2:] == [
        "a 4 1.000 0.250 0.400 b (2)",
        "b 2 0.500 1.000 0.667",
        "c 0 0.000 0.000 0.000",
        "macro-F1 6 0.356",
    ]


def test_the_classes_for_a_paper() -> None:
    assert "| a | 4 | 1.000 | 0.250 | 0.400 | b (2) |" in write_classes(CLASSES, "markdown")
    assert r"a & 4 & 1.000 & 0.250 & 0.400 & b (2) \\" in write_classes(CLASSES, "latex")
