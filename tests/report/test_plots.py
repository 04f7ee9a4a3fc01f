from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from fedmoe_app import ResultsError
from fedmoe_app.report.heatmap import draw_routing, routing_shares
from fedmoe_app.report.plots import draw_accuracy, draw_bytes, plot_run
from fedmoe_app.results.folder import RunFolder


def line(round_number: int, clients: int = 2, shape: tuple[int, int] = (2, 4)) -> dict[str, Any]:
    count = np.arange(clients * shape[0] * shape[1]).reshape(clients, *shape)
    return {
        "round": round_number,
        "status": "ok",
        "loss": 2.0 - 0.1 * round_number,
        "accuracy": 0.1 * round_number,
        "metric": "accuracy",
        "train_loss": 1.0 if round_number else None,
        "num_clients": clients,
        "bytes_up": 1000 * clients,
        "bytes_down": 2000 * clients,
        "clients": [
            {"client": i, "loss": 1.5, "accuracy": 0.25, "local_accuracy": 0.5 + 0.25 * i}
            for i in range(clients)
        ],
        "failures": [],
        "routing": {"count": count.tolist()},
        "seconds": {"round": 1.0},
    }


def start() -> dict[str, Any]:
    return line(0, clients=0)


def failed(round_number: int) -> dict[str, Any]:
    return line(round_number, clients=0) | {"status": "failed", "loss": None, "accuracy": None}


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([start()], ["accuracy"]),
        ([start(), line(1, clients=1)], ["accuracy", "bytes", "routing"]),
        ([start(), line(1), failed(2), line(3)], ["accuracy", "bytes", "routing"]),
        ([start(), failed(1)], ["accuracy", "bytes"]),
        ([start(), line(1, 50, (3, 64)), line(2, 50, (3, 64))], ["accuracy", "bytes", "routing"]),
    ],
)
def test_every_kind_of_run_is_drawn(
    tmp_path: Path, lines: list[dict[str, Any]], names: list[str]
) -> None:
    folder = RunFolder(tmp_path / "a")
    for each in lines:
        folder.append(each)
    paths = plot_run(folder.path)
    assert [path.stem for path in paths] == names
    for path in paths:
        assert min(imread(path).shape[:2]) > 200
    assert not list(folder.path.glob(".*"))


def test_a_run_without_lines_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ResultsError, match="nothing to draw"):
        plot_run(tmp_path)


def test_points_stand_at_the_round_whose_model_they_measure() -> None:
    left, right = draw_accuracy([start(), line(1), line(2)]).axes
    by_label = {str(drawn.get_label()): drawn.get_xydata().tolist() for drawn in left.lines}
    assert by_label["global model, server's test set"] == [[0, 0.0], [1, 0.1], [2, 0.2]]
    # What a client received in round 1 is the model after round 0.
    assert by_label["global model, each client's own test data"] == [[0, 0.25], [1, 0.25]]
    # The mean of 0.5 and 0.75.
    local = by_label["after local training, own test data, mean over clients"]
    assert local == [[1, 0.625], [2, 0.625]]
    assert right.get_ylabel() == "loss (nats)"


def test_rounds_without_evaluation_are_bridged() -> None:
    quiet = line(1) | {"loss": None, "accuracy": None}
    left, _ = draw_accuracy([start(), quiet, line(2)]).axes
    server = [drawn for drawn in left.lines if "server" in str(drawn.get_label())]
    assert server[0].get_xydata().tolist() == [[0, 0.0], [2, 0.2]]


def test_bytes_are_added_up() -> None:
    figure = draw_bytes([start(), line(1), line(2)])
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "up: clients to server, 4.00 kB in all",
        "down: server to clients, 8.00 kB in all",
    ]


def test_shares_sum_to_one_a_client_and_layer() -> None:
    count = np.array([[[1, 3], [0, 0]], [[2, 2], [5, 0]]])  # [N, L, E]
    expected = np.array([[[0.25, 0.75], [np.nan, np.nan]], [[0.5, 0.5], [1.0, 0.0]]])
    np.testing.assert_array_equal(routing_shares(count), expected)


def test_the_last_routing_is_drawn_a_panel_a_layer() -> None:
    figure = draw_routing([start(), line(1, shape=(3, 8)), failed(2)])
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["MoE layer 0", "MoE layer 1", "MoE layer 2"]
    assert figure.get_suptitle() == "routing in round 1"


def test_no_routing_no_picture() -> None:
    assert draw_routing([start(), failed(1)]) is None
