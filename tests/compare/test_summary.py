import pytest

from fedmoe_app.compare.summary import Row, results_of, summarise
from tests.compare.fakes import broken, example, last_failed, lines, plan_and_outcomes


def rows() -> dict[tuple[str, str], Row]:
    plan, outcomes = example()
    found = summarise(plan, results_of(plan, outcomes))
    return {(row.scheme, row.partition): row for row in found}


def test_rows_stand_by_partition_then_scheme() -> None:
    assert list(rows()) == [
        ("centralised", "-"),
        ("fedavg", "iid"),
        ("fedprox", "iid"),
        ("fedavg", "dirichlet 0.1"),
        ("fedprox", "dirichlet 0.1"),
    ]


def test_accuracy_and_difference_over_the_seeds() -> None:
    row = rows()["fedprox", "iid"]
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(0.785)
    assert row.difference is not None  # 0.77 - 0.6 and 0.8 - 0.7
    assert row.difference.mean == pytest.approx(0.135)
    assert row.difference.half_width == pytest.approx(12.706205 * 0.07 / 2, rel=1e-5)
    assert rows()["fedavg", "iid"].difference is None
    assert rows()["centralised", "-"].difference is None


def test_local_accuracy_and_its_variance_are_averaged_over_the_seeds() -> None:
    row = rows()["fedprox", "iid"]
    assert row.local_accuracy is not None
    assert row.local_accuracy.mean == pytest.approx(0.4)  # 0.6 and 0.2
    assert row.local_variance == pytest.approx(0.01)  # of the seed with two clients


def test_rounds_to_the_shares_of_the_centralised_accuracy_of_the_same_seed() -> None:
    """Seed 1: 0.72 and 0.76; seed 2: 0.9 and 0.95."""
    ninety, ninety_five = rows()["fedprox", "iid"].rounds
    assert ninety is not None
    assert ninety_five is not None
    assert (ninety.mean, ninety.reached, ninety.of) == (1.0, 1, 2)
    assert (ninety_five.mean, ninety_five.reached, ninety_five.of) == (2.0, 1, 2)
    never = rows()["fedavg", "iid"].rounds[0]
    assert never is not None
    assert (never.mean, never.reached, never.of) == (None, 0, 2)


def test_a_failed_run_leaves_the_others_in_the_row() -> None:
    row = rows()["fedprox", "dirichlet 0.1"]
    assert (row.runs, row.failed) == (1, 1)
    assert row.accuracy is not None
    assert (row.accuracy.n, row.accuracy.interval) == (1, None)
    assert row.difference is not None
    assert (row.difference.n, row.difference.mean) == (1, pytest.approx(0.1))


def test_without_a_reference_there_are_no_rounds_to_it() -> None:
    plan, outcomes = plan_and_outcomes({("fedavg", "iid", 1): lines(0.1, 0.5, 0.6)})
    (row,) = summarise(plan, results_of(plan, outcomes))
    assert row.rounds == (None, None)


def test_a_row_whose_runs_all_failed_is_still_there() -> None:
    plan, outcomes = plan_and_outcomes({("fedavg", "iid", 1): "ValueError: no"})
    (row,) = summarise(plan, results_of(plan, outcomes))
    assert (row.runs, row.failed, row.accuracy, row.seconds) == (0, 1, None, None)


def test_a_run_without_a_final_accuracy_is_left_out_of_the_means() -> None:
    plan, outcomes = broken()
    (row,) = summarise(plan, results_of(plan, outcomes))
    assert (row.runs, row.failed, row.seeds) == (2, 1, 3)
    assert row.accuracy is not None
    assert (row.accuracy.n, row.accuracy.mean) == (2, pytest.approx(0.7))
    assert (row.failed_rounds, row.missing_replies) == (0, 3)  # of the two that are in the mean


def test_a_centralised_run_that_failed_is_no_reference() -> None:
    plan, outcomes = plan_and_outcomes(
        {
            ("centralised", "-", 1): last_failed(lines(0.1, 0.4, 0.8)),
            ("fedavg", "iid", 1): lines(0.1, 0.5, 0.6),
        }
    )
    assert summarise(plan, results_of(plan, outcomes))[1].rounds == (None, None)
