"""The charts of a run over its rounds: the figures of every run, and those inside a scheme."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedmoe_app.report.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SHAPES,
    Axis,
    Chart,
    Dots,
    Point,
    Series,
    bars,
    dots,
    lines,
    number,
    percent,
    seconds,
    style,
    three,
)
from fedmoe_app.results.table import human_bytes
from fedmoe_app.results.values import (
    Line,
    Points,
    add_point,
    by_number,
    client_curves,
    diagnostic,
    diagnostic_curves,
    layer_curves,
)

# Up to so many clients or layers each is drawn by itself, more of them as a band.
MAX_DRAWN = 12
GLOBAL, OWN, LOCAL = "global model", "global model on clients' own data", "after local training"
DOTTED = (2, 3)


def charts_of(found: Sequence[Line], metric: str) -> dict[str, Chart]:
    """Return accuracy, loss, bytes and seconds by round; without numbers a chart has no spec."""
    rounds = [line for line in found if line["round"] != 0]
    failed = failed_rounds(found)
    return {
        "accuracy": lines(metric[:1].upper() + metric[1:], [
            _over_clients(found, "accuracy", OWN, GREY, shift=-1),
            _over_clients(found, "local_accuracy", LOCAL, ORANGE),
            Series(GLOBAL, _points(found, "accuracy")),
        ], Axis(metric, three, most=1), failed),
        "loss": lines("Loss", [
            _over_clients(found, "loss", OWN, GREY, shift=-1),
            _over_clients(found, "train_loss", "local training", GREEN),
            Series(GLOBAL, _points(found, "loss")),
        ], Axis("loss (nats)", three), failed),
        "bytes": bars("Bytes a round", [
            _sums(rounds, "bytes_up", "up: clients to server", BLUE),
            _sums(rounds, "bytes_down", "down: server to clients", ORANGE),
        ], Axis("bytes, all clients", human_bytes), failed),
        "seconds": bars("Seconds a round", [
            Series("training and waiting", _seconds(rounds, "train")),
            Series("evaluation", _seconds(rounds, "evaluate"), ORANGE),
        ], Axis("seconds", seconds), failed),
    }  # fmt: skip


def clients_chart(clients: Sequence[dict[str, Any]], metric: str) -> Chart:
    """Return each client's accuracy on its own test data before and after local training."""
    columns = (
        ("received global model", GREY, "accuracy"),
        (LOCAL, ORANGE, "local_accuracy"),
        ("personal model", PURPLE, "personal_accuracy"),
    )
    series = [
        Dots(name, [_given([client.get(key)]) for client in clients], colour, SHAPES[place])
        for place, (name, colour, key) in enumerate(columns)
    ]
    names = [f"client {client['client']}" for client in clients]
    axis = Axis(f"{metric} on the client's own test data", three, high=1)
    return dots("Before and after local training", names, series, axis, joined=True)


def diagnostic_charts(found: Sequence[Line]) -> dict[str, Chart]:
    """Return the curves inside the scheme that the run has numbers for."""
    rounds = [line for line in found if line["round"] != 0]
    failed = failed_rounds(found)

    def of_layers(title: str, curves: dict[str, Points], axis: Axis) -> Chart:
        return lines(title, many(curves, "layers"), axis, failed)

    def of_clients(title: str, curves: dict[str, Points], axis: Axis) -> Chart:
        return lines(title, many(curves, "clients"), axis, failed)

    found_charts = {
        "conflict-curves": of_layers(
            "Conflicting updates",
            diagnostic_curves(rounds, "conflict"),
            Axis("mean over experts", percent),
        ),
        "kappa-curves": of_layers(
            "κ of the projection",
            diagnostic_curves(rounds, "kappa"),
            Axis("κ, mean over experts", number),
        ),
        "entropy": of_layers(
            "Entropy of ω",
            relative_entropy_curves(rounds),
            Axis("entropy / log N, mean over experts (1: equal weights)", three, most=1.02),
        ),
        "distance": of_clients(
            "Distance of each client's routing to the reference",
            client_curves(rounds, "reference_distance"),
            Axis("total variation, mean over layers", three),
        ),
        "similarity-curves": _similarity(rounds, failed),
        "agreement-curves": of_layers(
            "Agreement D of the updates",
            diagnostic_curves(rounds, "agreement_mean"),
            Axis("D, mean over pairs i ≠ j and experts", three, low=None),
        ),
        "ratio": of_clients(
            "r(c), importance held by the chosen experts",
            ratio_curves(rounds),
            Axis("share of the batch's importance", percent, most=1.02),
        ),
        "gates": of_clients(
            "α, weight of each client's gate",
            client_curves(rounds, "gate_weights"),
            Axis("α, mean over layers", percent, low=None, span=0.05),
        ),
    }
    return {name: chart for name, chart in found_charts.items() if chart.spec}


def many(curves: Mapping[str, Points], what: str) -> list[Series]:
    """Return a series for each curve, or with more than ``MAX_DRAWN`` their mean and range.

    Args:
        curves: points (round, value) by name.
        what: what the curves are, in the plural.
    """
    if len(curves) <= MAX_DRAWN:
        return [
            Series(name, [Point(*point) for point in points], **style(index))
            for index, (name, points) in enumerate(curves.items())
        ]
    return [Series(f"mean of {len(curves)} {what}, lowest to highest", _range(curves.values()))]


def relative_entropy_curves(found: Iterable[Line]) -> dict[str, Points]:
    """Return the entropy of ω over log N per round, mean over experts, a curve a layer.

    1 is equal weights. A round of one client has no point, since log 1 is 0. An expert to which
    no client gives any probability (its column of ω is 0) does not count.
    """
    rounds = []
    for line in found:
        entropy, omega = (diagnostic(line, key) for key in ("omega_entropy", "omega"))
        if entropy is None or omega is None or omega.shape[1] < 2:
            continue
        used = omega.sum(axis=1) > 0  # [L, E]
        relative = entropy / math.log(omega.shape[1])
        rounds.append((line["round"], np.where(used, relative, np.nan)))
    return layer_curves(rounds)


def ratio_curves(found: Iterable[Line]) -> dict[str, Points]:
    """Return r(c), the share of importance that the chosen experts hold, a curve a client."""
    curves: dict[str, Points] = {}
    for line in found:
        for client in line["clients"]:
            ratio = client.get("selection_ratio")
            add_point(curves, f"client {client['client']}", line["round"], ratio)
    return by_number(curves)


def threshold_curves(found: Iterable[Line]) -> dict[str, Points]:
    """Return τ per round, mean over the experts that the mean of S counts, a curve a layer.

    An expert of one client has a τ, but no pair.
    """
    rounds = []
    for line in found:
        threshold, similarity = (diagnostic(line, key) for key in ("threshold", "similarity_mean"))
        if threshold is not None and similarity is not None:
            rounds.append((line["round"], np.where(np.isfinite(similarity), threshold, np.nan)))
    return layer_curves(rounds)


def failed_rounds(found: Iterable[Line]) -> list[int]:
    """Return the numbers of the rounds that left the global model as it was."""
    return [line["round"] for line in found if line.get("status", "ok") != "ok"]


def _similarity(rounds: Sequence[Line], failed: Sequence[int]) -> Chart:
    """Return S by layer with its threshold τ, dotted."""
    curves = diagnostic_curves(rounds, "similarity_mean")
    limits = threshold_curves(rounds) if curves else {}
    name = "threshold τ"
    if len(limits) > MAX_DRAWN:
        below = [Series(f"{name}, mean", _range(limits.values()), GREY, DOTTED, None)]
    else:
        below = [
            Series(name, [Point(*point) for point in points], style(list(curves).index(layer))
                   ["colour"], DOTTED, None, key=GREY)
            for layer, points in limits.items()
        ]  # fmt: skip
    axis = Axis("S, mean over pairs i ≠ j and experts", three, low=None)
    series = [*many(curves, "layers"), *below]
    chart = lines("Similarity S of the regions", series, axis, failed)
    about = "S leaves out i = j; the mean and the deviation in an adaptive τ include it."
    return chart._replace(about=about)


def _range(curves: Iterable[Points]) -> list[Point]:
    by_round: dict[int, list[float]] = {}
    for points in curves:
        for server_round, value in points:
            by_round.setdefault(server_round, []).append(value)
    return [_spread(each, by_round[each]) for each in sorted(by_round)]


def _spread(server_round: int, values: Sequence[float]) -> Point:
    """Return the mean with a band from the lowest to the highest."""
    return Point(server_round, statistics.fmean(values), min(values), max(values), len(values))


def _over_clients(
    found: Iterable[Line], key: str, name: str, colour: str, shift: int = 0
) -> Series:
    """Return the clients' mean with a band from the lowest to the highest, and a dot for each.

    What a client received in round r is the model after round r - 1: ``shift`` is -1 there.
    """
    points, single = [], []
    for line in found:
        if values := _given(client.get(key) for client in line["clients"]):
            points.append(_spread(line["round"] + shift, values))
            single += [(line["round"] + shift, value) for value in values]
    few = max((point.n or 0 for point in points), default=0) <= MAX_DRAWN
    shape = SHAPES[1] if colour == GREY else SHAPES[2]
    return Series(f"{name}, mean over clients", points, colour, (5, 4), shape,
                  single if few else ())  # fmt: skip


def _points(found: Iterable[Line], key: str) -> list[Point]:
    return [Point(line["round"], line[key]) for line in found if line.get(key) is not None]


def _sums(rounds: Sequence[Line], key: str, name: str, colour: str) -> Series:
    points = [Point(line["round"], line.get(key) or 0) for line in rounds]
    total = human_bytes(sum(point.y for point in points))
    return Series(f"{name}, {total} in all", points, colour, shape=SHAPES[1])


def _seconds(rounds: Sequence[Line], name: str) -> list[Point]:
    given = ((line["round"], (line.get("seconds") or {}).get(name)) for line in rounds)
    return [Point(at, value) for at, value in given if value is not None]


def _given(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
