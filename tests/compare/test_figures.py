from typing import Any

import pytest

from fedmoe_app import ResultsError
from fedmoe_app.compare.figures import figures_of, losses, rounds_to
from tests.compare.fakes import last_failed, lines, rejecting


def test_figures_of_a_run_of_two_rounds() -> None:
    found = figures_of(lines(0.1, 0.3, 0.6, own=(0.5, 0.7)), 2)
    assert (found.accuracy, found.loss, found.initial_loss) == (0.6, 0.0, 2.0)
    assert found.curve == ((0, 0.1), (1, 0.3), (2, 0.6))
    assert found.local_accuracy == pytest.approx(0.6)
    assert found.local_variance == pytest.approx(0.01)  # (0.1² + 0.1²) / 2
    assert (found.bytes_up, found.bytes_up_total) == (20.0, 40)
    assert found.seconds == pytest.approx(4.5)


def test_clients_without_an_accuracy_are_left_out() -> None:
    found = figures_of(lines(0.1, 0.3, own=(None, 0.7, 0.9)), 1)
    assert found.local_accuracy == pytest.approx(0.8)
    alone = figures_of(lines(0.1, 0.3, own=(None, 0.7)), 1)
    assert (alone.local_accuracy, alone.local_variance) == (0.7, None)
    none = figures_of(lines(0.1, 0.3, own=(None,)), 1)
    assert (none.local_accuracy, none.local_variance) == (None, None)


def test_a_server_without_a_test_set_has_no_accuracy() -> None:
    found = figures_of(lines(None, None), 1)
    assert found.accuracy is None
    assert found.curve == ()
    assert found.failure == "no accuracy after the last round"


def test_rejected_clients_are_counted_over_the_rounds() -> None:
    found = figures_of(rejecting(lines(0.1, 0.3, 0.6), c1="NaN", c2="old"), 2)
    assert (found.failed_rounds, found.missing_replies, found.failure) == (0, 4, None)


def test_a_failed_round_is_no_missing_reply() -> None:
    entries = lines(0.1, None, 0.6)
    entries[1] |= {"status": "failed", "failures": [{"who": "round", "reason": "not finite"}]}
    found = figures_of(entries, 2)
    assert (found.failed_rounds, found.missing_replies, found.failure) == (1, 0, None)


def test_lines_without_status_and_failures_have_lost_nothing() -> None:
    entries = lines(0.1, 0.3)
    for entry in entries:
        del entry["status"]
    found = figures_of(entries, 1)
    assert (found.failed_rounds, found.missing_replies) == (0, 0)


def test_a_last_round_that_failed_is_the_reason() -> None:
    found = figures_of(last_failed(rejecting(lines(0.1, 0.3, 0.6), c1="NaN", c2="old")), 2)
    assert (found.accuracy, found.failed_rounds, found.missing_replies) == (None, 1, 4)
    assert found.failure == (
        "no accuracy after the last round; round 2: 1 usable reply of 2; c1: NaN; and 1 more"
    )


def test_losses_are_named_where_there_are_any() -> None:
    assert losses(0, 0) == []
    assert losses(1, 1) == ["1 round failed", "1 reply missing"]
    assert losses(2, 3) == ["2 rounds failed", "3 replies missing"]


def test_rounds_to_a_target() -> None:
    curve = ((0, 0.1), (1, 0.5), (2, 0.4), (3, 0.6))
    assert rounds_to(curve, 0.5) == 1
    assert rounds_to(curve, 0.55) == 3
    assert rounds_to(curve, 0.7) is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "not that of round 2"),
        (lines(0.1, 0.2), "not that of round 2"),
        ([{"round": 0}, {"round": 2}], "lacks figures"),
        ([{"round": 0}, {"round": 2, "clients": None}], "lacks figures"),
        ([line | {"failures": ["c1"]} for line in lines(0.1, 0.2, 0.3)], "lacks figures"),
    ],
)
def test_a_log_that_is_not_complete_is_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        figures_of(entries, 2)
