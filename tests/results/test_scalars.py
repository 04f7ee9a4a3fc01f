from fedmoe_app.results.trackers import scalars
from tests.report.html.runs import client, line


def test_a_round_has_standard_names() -> None:
    entry = line(1) | {
        "clients": [client(3, personal_accuracy=None)],
        "failures": [{"who": "client 1", "reason": "no"}, {"who": "round", "reason": "few"}],
        "diagnostics": {"conflict": [[0.5, None], [0.0, 1.0]], "kappa": [[None]]},
    }
    assert scalars(entry) == {
        "global/accuracy": 0.25,
        "global/loss": 1.75,
        "train/loss": 1.5,
        "bytes/up": 200.0,
        "bytes/down": 400.0,
        "clients/replied": 2.0,
        "clients/failed": 1.0,
        "seconds/round": 1.5,
        "seconds/train": 1.0,
        "seconds/evaluate": 0.5,
        "client/3/accuracy": 0.25,
        "client/3/loss": 1.6,
        "client/3/local_accuracy": 0.65,
        "client/3/local_loss": 1.2,
        "client/3/train_loss": 1.2,
        "client/3/bytes_up": 100.0,
        "scheme/conflict": 0.5,
    }


def test_the_initial_model_has_no_bytes_and_what_is_not_finite_is_left_out() -> None:
    found = scalars(line(0) | {"loss": float("nan"), "accuracy": None})
    assert found == {"seconds/round": 0.5}
