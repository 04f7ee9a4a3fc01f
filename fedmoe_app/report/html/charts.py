"""What the page's script draws: lines over rounds, bars, dots; one dict a chart.

A chart names its axes and their ``format`` (``share``, ``number``, ``bytes``) and holds
``series`` of points ``[x, y]`` or, where a band belongs to the line, ``[x, y, low, high]``.
``low`` and ``high`` fix the axis, ``most`` bounds it; ``colour`` is the number of a colour of the
style sheet.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedmoe_app.results.values import Line

Chart = dict[str, Any]
Series = dict[str, Any]
Points = list[list[float | None]]

BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY = range(8)
GLOBAL, OWN, LOCAL = "global model", "global model on clients' own data", "after local training"


def accuracy_chart(lines: Sequence[Line], metric: str) -> Chart:
    """Accuracy of the global model and of the clients, per round."""
    series = [
        _spread(lines, "accuracy", OWN, GREY, shift=-1),
        _spread(lines, "local_accuracy", LOCAL, ORANGE),
        line_series(GLOBAL, _points(lines, "accuracy"), BLUE),
    ]
    return chart("lines", series, lines, y=metric, format="share", low=0, most=1)


def loss_chart(lines: Sequence[Line]) -> Chart:
    """Loss of the global model and of the clients, per round, in nats."""
    series = [
        _spread(lines, "loss", OWN, GREY, shift=-1),
        _spread(lines, "train_loss", "local training", GREEN),
        line_series(GLOBAL, _points(lines, "loss"), BLUE),
    ]
    return chart("lines", series, lines, y="loss (nats)", format="number", low=0)


def bytes_chart(lines: Sequence[Line]) -> Chart:
    """Bytes that all clients together sent and received, per round."""
    rounds = [line for line in lines if line["round"] != 0]
    series = [
        line_series("up: clients to server", _points(rounds, "bytes_up"), BLUE),
        line_series("down: server to clients", _points(rounds, "bytes_down"), ORANGE),
    ]
    return chart("bars", series, rounds, y="bytes, all clients", format="bytes", low=0)


def seconds_chart(lines: Sequence[Line]) -> Chart:
    """Seconds of each round: local training with its waiting, and evaluation."""
    rounds = [line for line in lines if line["round"] != 0]

    def points(name: str) -> Points:
        return [[line["round"], (line.get("seconds") or {}).get(name)] for line in rounds]

    series = [
        line_series("training and waiting", points("train"), BLUE),
        line_series("evaluation", points("evaluate"), ORANGE),
    ]
    return chart("bars", series, rounds, y="seconds", format="seconds", low=0)


def clients_chart(clients: Sequence[dict[str, Any]], metric: str) -> Chart:
    """Each client's accuracy on its own test data before and after its last local training."""
    columns = (
        ("received global model", GREY, "accuracy"),
        (LOCAL, ORANGE, "local_accuracy"),
        ("personal model", PURPLE, "personal_accuracy"),
    )
    found: list[Series] = []
    for name, colour, key in columns:
        values = [client.get(key) for client in clients]
        if any(value is not None for value in values):
            found.append({"name": name, "colour": colour, "values": values})
    return {
        "kind": "dots",
        "rows": [f"client {client['client']}" for client in clients] if found else [],
        "series": found,
        "x": f"{metric} on the client's own test data",
        "format": "share",
        "low": 0,
        "high": 1,
    }


def chart(kind: str, series: Iterable[Series | None], lines: Sequence[Line], **more: Any) -> Chart:
    """Put a chart over rounds together; series without a value are left out."""
    found = [each for each in series if each and any(p[1] is not None for p in each["points"])]
    failed = [line["round"] for line in lines if line.get("status", "ok") != "ok"]
    return {"kind": kind, "x": "round", "series": found, "failed": failed, **more}


def line_series(name: str, points: Points, colour: int = BLACK, **more: Any) -> Series:
    """Return one line of a chart."""
    return {"name": name, "points": points, "colour": colour, **more}


def _points(lines: Iterable[Line], key: str) -> Points:
    return [[line["round"], line.get(key)] for line in lines]


def _spread(lines: Iterable[Line], key: str, name: str, colour: int, shift: int = 0) -> Series:
    """Return the clients' median with a band from the lowest to the highest.

    What a client received in round r is the model after round r - 1: ``shift`` is -1 there.
    """
    points: Points = []
    for line in lines:
        values = _of_clients(line, lambda client: client.get(key))
        if values:
            middle = statistics.median(values)
            points.append([line["round"] + shift, middle, min(values), max(values)])
    return line_series(f"{name}, median client", points, colour, dash="5 4")


def _of_clients(line: Line, get: Callable[[dict[str, Any]], float | None]) -> list[float]:
    return [value for client in line["clients"] if (value := get(client)) is not None]
