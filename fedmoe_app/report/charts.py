"""Charts as Vega-Lite specs, plain dicts: one definition for the page, PNG, SVG and PDF.

A chart over rounds has layers over one pair of axes: failed rounds, single clients or seeds as
dots, a band, the line, and a transparent bar a round that carries the values as text. What a reader
sees of a series (colour, dash, mark) stands in the :class:`Series` and nowhere else. Colours are
variables of the page's style sheet; :mod:`files` puts printed ones in their place.

Vega-Lite draws a misspelled key without a word: the tests check each kind of spec by its schema.
Names of clients and schemes stand in data only, never in an expression.

The file is long because its three kinds of charts share axes, colours, tips and legend, which would
otherwise be a second file that each of them imports a dozen private names from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedmoe_app.results.table import human_bytes

Spec = dict[str, Any]

BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY = (f"var(--c{i})" for i in range(8))
# Neither black nor grey: one stands for the first scheme, the other for references.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
SOLID: tuple[int, ...] = ()
DASHES = (SOLID, (7, 4), (2, 3), (9, 3, 2, 3))
# Paths around (0, 0), for Vega and for the legend of the page.
SHAPES = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z",
    "M-.9-.9H.9V.9H-.9Z",
    "M0-1.15L1.15.9H-1.15Z",
    "M0-1.3L1.1,0L0,1.3L-1.1,0Z",
    "M-.35-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35Z",
)
MAX_MARKED = 60  # rounds, up to which each has a mark on the line
MANY_LINES = 6  # with more of them each line has its name at its end, too
HEIGHT, LABEL_STEP = 240, 14  # pixels of a chart over rounds, and of the names at its end
FAILED = "failed round"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)", "titleColor": "var(--quiet)", "gridColor": "var(--grid)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "titleFontWeight": "normal",
        "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 0, "titleLimit": 0,
    },
    "legend": {
        "labelColor": "var(--text)", "titleColor": "var(--quiet)", "orient": "bottom",
        "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 0,
        "titleLimit": 0,
    },
    "title": {"color": "var(--text)", "anchor": "start", "fontWeight": "normal", "fontSize": 13},
    "text": {"fontSize": 12, "color": "var(--text)"},
    "scale": {"invalid": {"color": {"value": "var(--none)"}}},
}  # fmt: skip


class Point(NamedTuple):
    """A value of a round: ``low`` to ``high`` is its band, ``n`` counts what it is a mean of."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Series(NamedTuple):
    """What is drawn as one line, or as the bars of one colour.

    ``dots`` are single values (round, value) beside the points; ``key`` is the legend's colour,
    where it is not the line's.
    """

    name: str
    points: Sequence[Point]
    colour: str = BLUE
    dash: tuple[int, ...] = SOLID
    shape: str | None = SHAPES[0]
    dots: Sequence[tuple[float, float]] = ()
    key: str | None = None


class Axis(NamedTuple):
    """The vertical axis: its title, how a value is written, and its ends; None follows the data."""

    title: str
    write: Callable[[float], str]
    low: float | None = 0
    high: float | None = None
    most: float | None = None  # the axis ends there at the latest
    span: float = 0  # it is at least so wide, in parts of its middle


class Chart(NamedTuple):
    """A drawing with its title; ``legend`` explains the series, ``about`` the whole.

    ``cube`` and ``columns`` belong to heat maps: the name of their numbers on the page, and how
    many columns share its width.
    """

    title: str
    spec: Spec
    legend: tuple[Spec, ...] = ()
    about: str = ""
    cube: str | None = None
    columns: int | None = None

    def to_json(self) -> Spec:
        """Return what the page's script needs."""
        return {"spec": self.spec, "legend": list(self.legend), "cube": self.cube,
                "columns": self.columns}  # fmt: skip


def three(value: float) -> str:
    """Write an accuracy, a loss or a share between 0 and 1 as tables do."""
    return f"{value:.3f}"


def number(value: float) -> str:
    """Write any other number."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    """Write a share of tokens, clients or weight."""
    return f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """Write a duration of a round."""
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def style(index: int) -> Spec:
    """Return colour, dash and mark of one of many lines, for :class:`Series`; 60 differ."""
    return {
        "colour": COLOURS[index % len(COLOURS)],
        "dash": DASHES[index % len(DASHES)],
        "shape": SHAPES[index % len(SHAPES)],
    }


def lines(title: str, series: Iterable[Series], axis: Axis, failed: Sequence[int] = ()) -> Chart:
    """Return lines over rounds, each with its band and dots.

    Args:
        title: of the chart.
        series: those without a point are left out.
        axis: the vertical axis.
        failed: rounds to mark.
    """
    found = _finite(series)
    rounds = sorted({point.x for each in found for point in each.points})
    rows: list[Spec] = [
        {"s": s, "x": p.x, "y": p.y} | ({} if p.low is None else {"low": p.low, "high": p.high})
        for s, each in enumerate(found) for p in each.points
    ]  # fmt: skip
    dots = [
        {"s": s, "x": x, "y": y} for s, each in enumerate(found) for x, y in each.dots
    ]  # fmt: skip
    layers: list[Spec] = []
    if dots:
        layers.append({
            "data": {"values": dots},
            "mark": {"type": "point", "filled": True, "size": 10, "aria": False, "clip": True},
            "encoding": {"x": _x(), "y": _y("y"), "color": _colour(found), "opacity": _shown(0.4)},
        })  # fmt: skip
    if any("low" in row for row in rows):
        layers.append(_band(rows, found, thin=len(rounds) < 2))
    layers.append({
        "mark": {"type": "line", "strokeWidth": 2.2, "strokeJoin": "round", "aria": False},
        "encoding": {"x": _x(), "y": _y("y"), "color": _colour(found), "opacity": _shown(1),
                     "strokeDash": _by_series([list(each.dash) or [1, 0] for each in found])},
    })  # fmt: skip
    if len(rounds) <= MAX_MARKED:
        marked = [s for s, each in enumerate(found) if each.shape]
        layers.append({
            "transform": [{"filter": {"field": "s", "oneOf": marked}}],
            "mark": {"type": "point", "filled": True, "size": 42, "aria": False},
            "encoding": {"x": _x(), "y": _y("y"), "color": _colour(found), "opacity": _shown(1),
                         "shape": _by_series([each.shape or SHAPES[0] for each in found])},
        })  # fmt: skip
    if len(found) > MANY_LINES:
        layers.append(_names_at_the_end(found, ends_of(found, axis)))
    return _over_rounds(title, found, axis, rounds, failed, rows, layers, "line")


def bars(title: str, series: Iterable[Series], axis: Axis, failed: Sequence[int] = ()) -> Chart:
    """Return a bar for each round and series, beside each other; arguments as :func:`lines`."""
    found = _finite(series)
    rounds = sorted({point.x for each in found for point in each.points})
    width = 0.8 / max(1, len(found))
    rows = [
        {"s": s, "x": p.x - 0.4 + s * width, "to": p.x - 0.4 + (s + 0.94) * width, "y": p.y}
        for s, each in enumerate(found) for p in each.points
    ]  # fmt: skip
    layer = {
        "mark": {"type": "rect", "aria": False},
        "encoding": {"x": _x(), "x2": {"field": "to"}, "y": _y("y"), "y2": {"datum": 0},
                     "color": _colour(found), "opacity": _shown(1)},
    }  # fmt: skip
    return _over_rounds(title, found, axis, rounds, failed, rows, [layer], "bar")


def _finite(series: Iterable[Series]) -> list[Series]:
    """Leave out what is no number, such as a loss that ran away, and series without any."""
    found = [
        each._replace(points=[point for point in each.points if math.isfinite(point.y)],
                      dots=[dot for dot in each.dots if math.isfinite(dot[1])])
        for each in series
    ]  # fmt: skip
    return [each for each in found if each.points]


def _over_rounds(
    title: str, series: list[Series], axis: Axis, rounds: list[float], failed: Sequence[int],
    rows: list[Spec], layers: list[Spec], kind: str,
) -> Chart:  # fmt: skip
    """Put what lines and bars share around their layers: axes, failed rounds, values as text."""
    if not series:
        return Chart(title, {})
    first, last = min(rounds[0], *failed, rounds[0]), max(rounds[-1], *failed, rounds[-1])
    layers[0]["encoding"]["x"] = _x("round", [first - 0.5, last + 0.5])
    # A band is the first layer, where there is one: its own field stays, the lower end.
    field = layers[0]["encoding"]["y"]["field"]
    layers[0]["encoding"]["y"] = _y(field, axis, ends_of(series, axis))
    marked = [{"from": number - 0.5, "to": number + 0.5} for number in failed]
    if marked:
        layers.append({
            "data": {"values": marked},
            "mark": {"type": "rect", "color": "var(--bad)", "opacity": 0.14, "aria": False},
            "encoding": {"x": _x(field="from"), "x2": {"field": "to"}},
        })  # fmt: skip
    layers.append(_hover([
        {"from": x - 0.5, "to": x + 0.5, "tip": _round_tip(x, series, axis.write)} for x in rounds
    ], "x"))  # fmt: skip
    legend = [_entry(each, s, kind) for s, each in enumerate(series)]
    if marked:
        legend.append({"name": FAILED, "colour": "var(--bad)", "kind": "area", "series": []})
    spec = _frame(f"{title}: {axis.title} over the rounds", rows, layers, HEIGHT)
    return Chart(title, spec, once(legend))


def dots(
    title: str, names: Sequence[str], series: Sequence[Dots], axis: Axis, joined: bool = False
) -> Chart:
    """Return rows against one number, which grows to the right.

    Args:
        title: of the chart.
        names: of the rows.
        series: what is marked in each row; those without a value are left out.
        axis: the horizontal axis.
        joined: whether a line goes through the single values of a row.
    """
    found = [each for each in series if any(each.values)]
    if not found or not names:
        return Chart(title, {})
    long = max(map(len, names)) > 14  # then a name stands over its row
    height = 42 if long else 24 if len(names) <= 30 else 16
    down = 0.16 if long else 0.0
    rows: list[Spec] = [
        {"s": s, "r": r + down + (0.26 if each.small else 0), "v": value,
         "size": 18 if each.small else 80}
        | ({} if each.ends is None or each.ends[r] is None
           else dict(zip(("low", "high"), each.ends[r] or (), strict=True)))
        for s, each in enumerate(found) for r, values in enumerate(each.values) for value in values
    ]  # fmt: skip
    y: Spec = {
        "field": "r", "type": "quantitative", "title": None,
        "scale": {"domain": [len(names) - 0.5, -0.5], "nice": False, "zero": False},
        "axis": None,
    }  # fmt: skip
    drawn = [row[key] for row in rows for key in ("v", "low", "high") if key in row]
    low, high = _ends(drawn, axis)
    x: Spec = {
        "field": "v", "type": "quantitative", "title": axis.title,
        "scale": {"domain": [low, high], "nice": False},
        "axis": {"tickCount": 5, "domain": False, "ticks": False, "labelFlush": True}
        | _written(axis, high),
    }  # fmt: skip
    same: Spec = {"y": y, "color": _colour(found), "opacity": _shown(1)}
    places = [{"r": r - 0.26 if long else r, "name": name} for r, name in enumerate(names)]
    layers: list[Spec] = [{
        "data": {"values": places},
        "mark": {"type": "text", "align": "left" if long else "right", "baseline": "middle",
                 "dx": 0 if long else -8, "aria": False},
        "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "name"}},
    }]  # fmt: skip
    if joined:
        layers.append({
            "transform": [{"aggregate": [{"op": "min", "field": "v", "as": "v"},
                                         {"op": "max", "field": "v", "as": "to"}],
                           "groupby": ["r"]}],
            "mark": {"type": "rule", "strokeWidth": 1.6, "opacity": 0.6, "aria": False},
            "encoding": {"x": x, "x2": {"field": "to"}, "y": y, "color": {"value": "var(--quiet)"}},
        })  # fmt: skip
    if any("low" in row for row in rows):
        given = {"transform": [{"filter": "isValid(datum.low)"}]}
        rule = {"type": "rule", "strokeWidth": 2, "clip": True, "aria": False}
        tick = {"type": "tick", "thickness": 2, "size": 11, "clip": True, "aria": False}
        between = {"x": x | {"field": "low"}, "x2": {"field": "high"}}
        layers.append({**given, "mark": rule, "encoding": between | same})
        for end in ("low", "high"):
            layers.append({**given, "mark": tick, "encoding": {"x": x | {"field": end}} | same})
    layers.append({
        "mark": {"type": "point", "filled": True, "aria": False},
        "encoding": {"x": x, **same, "shape": _by_series([each.shape for each in found]),
                     "size": {"field": "size", "type": "quantitative", "scale": None}},
    })  # fmt: skip
    layers.append(_hover([
        {"from": r - 0.5, "to": r + 0.5, "tip": _row_tip(name, r, found, axis.write)}
        for r, name in enumerate(names)
    ], "y", y))  # fmt: skip
    legend = tuple(_entry(each, s, "dot") for s, each in enumerate(found))
    spec = _frame(f"{title}: {axis.title}", rows, layers, height * len(names))
    return Chart(title, spec, legend)


class Dots(NamedTuple):
    """What is marked in each row of a dot chart: values, and the ends of an interval."""

    name: str
    values: Sequence[Sequence[float]]
    colour: str = BLUE
    shape: str = SHAPES[0]
    ends: Sequence[tuple[float, float] | None] | None = None
    small: bool = False


def _frame(said: str, rows: list[Spec], layers: list[Spec], height: float) -> Spec:
    return {
        "$schema": SCHEMA,
        "description": said,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "hidden", "value": []}],
        "data": {"values": rows},
        "layer": layers,
    }


def _x(title: str | None = None, domain: Sequence[float] | None = None, field: str = "x") -> Spec:
    """Return the horizontal channel of rounds; one layer names title and domain for all."""
    channel: Spec = {"field": field, "type": "quantitative"}
    if domain is None:
        return channel
    scale = {"domain": list(domain), "nice": False, "zero": False}
    axis = {"values": whole_ticks(*domain), "grid": False, "format": "d", "labelOverlap": True}
    return channel | {"title": title, "scale": scale, "axis": axis}


def whole_ticks(low: float, high: float) -> list[int]:
    """Return at most eleven whole numbers in an interval: 1, 2 or 5 times a power of ten apart.

    Vega's own ticks of two rounds are halves, which it then writes as whole numbers.
    """
    steps = (factor * 10**power for power in range(18) for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 11)
    return [*range(math.ceil(low / step) * step, math.floor(high) + 1, step)]


def _y(field: str, axis: Axis | None = None, domain: Sequence[float] = ()) -> Spec:
    channel: Spec = {"field": field, "type": "quantitative"}
    if axis is None:
        return channel
    text = {"title": axis.title, "titleAngle": 0, "titleAlign": "left", "titleAnchor": "end",
            "titleX": 0, "titleY": -10, "tickCount": 5, "domain": False, "ticks": False,
            **_written(axis, domain[1])}  # fmt: skip
    scale = {"domain": list(domain), "nice": False, "zero": False}
    return channel | {"title": axis.title, "axis": text, "scale": scale}


def _written(axis: Axis, high: float) -> Spec:
    """Return how an axis writes its ticks: bytes and shares in a unit, else plain numbers."""
    if axis.write is human_bytes:
        number, unit = human_bytes(int(high)).split()
        return {"labelExpr": f"format(datum.value / {high / float(number):.0e}, '~r') + ' {unit}'"}
    if axis.write is percent:
        return {"labelExpr": "format(100 * datum.value, '~r') + ' %'"}
    return {"format": "~r"}


def ends_of(series: Sequence[Series], axis: Axis) -> tuple[float, float]:
    """Return the ends of the vertical axis: all points and dots, bands as far as they help."""
    values = [point.y for each in series for point in each.points]
    values += [y for each in series for _, y in each.dots]
    points = [point for each in series for point in each.points if point.high is not None]
    # The interval of two seeds is thirteen times their spread: it would flatten the lines.
    top = max((point.high for point in points if point.high is not None), default=-1e300)
    low = min((point.low for point in points if point.low is not None), default=1e300)
    room = 0.5 * (max(values) - min(values, default=0) or abs(max(values)))
    values += [min(top, max(values) + room)] if top > max(values) else []
    values += [max(low, min(values) - room)] if low < min(values) else []
    return _ends(values, axis)


def _ends(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if axis.low is None and axis.span:
        middle = (low + high) / 2
        half = max(0.55 * (high - low), axis.span * abs(middle)) or 1.0
        low, high = middle - half, middle + half
    elif axis.high is None:
        high = low + 1.06 * (high - low) if high > low else low + 1
    if axis.low is None and not axis.span and low < 0:
        low -= 0.06 * (high - low)
    return low, high if axis.most is None else min(high, axis.most)


def _by_series(values: Sequence[Any]) -> Spec:
    """Return a channel that takes the value of each series, by its number."""
    scale = {"domain": list(range(len(values))), "range": list(values)}
    return {"field": "s", "type": "nominal", "scale": scale, "legend": None}


def _colour(series: Sequence[Series] | Sequence[Dots]) -> Spec:
    return _by_series([each.colour for each in series])


def _shown(opacity: float) -> Spec:
    """Return an opacity that is 0 for a series that the reader has hidden."""
    return {"condition": {"test": "indexof(hidden, datum.s) >= 0", "value": 0}, "value": opacity}


def _band(rows: list[Spec], series: Sequence[Series], thin: bool) -> Spec:
    """Return the layer from low to high; an area of a single round would have no width."""
    kind = {"type": "rule", "strokeWidth": 5} if thin else {"type": "area"}
    shade = 0.14 if len(series) <= 3 else 0.07
    return {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {**kind, "clip": True, "aria": False},
        "encoding": {"x": _x(), "y": _y("low"), "y2": {"field": "high"}, "color": _colour(series),
                     "opacity": _shown(0.35 if thin else shade)},
    }  # fmt: skip


def _names_at_the_end(series: Sequence[Series], ends: tuple[float, float]) -> Spec:
    """Return the layer that calls each line by its name: nobody finds nine colours in a legend.

    Where lines end close together the names are moved apart, in the order of the lines.
    """
    step = LABEL_STEP / HEIGHT * (ends[1] - ends[0])
    last = max(each.points[-1].x for each in series)
    order = sorted(range(len(series)), key=lambda s: series[s].points[-1].y)
    wanted = [series[s].points[-1].y for s in order]
    rows = [
        {"s": s, "x": last, "y": y, "name": series[s].name}
        for s, y in zip(order, spread_out(wanted, step), strict=True)
    ]
    return {
        "data": {"values": rows},
        "mark": {"type": "text", "align": "left", "baseline": "middle", "dx": 9, "fontSize": 11,
                 "aria": False},
        "encoding": {"x": _x(), "y": _y("y"), "text": {"field": "name", "type": "nominal"},
                     "color": _colour(series), "opacity": _shown(1)},
    }  # fmt: skip


def spread_out(places: Sequence[float], step: float) -> list[float]:
    """Return ascending places at least ``step`` apart, each group around the middle of its own."""
    groups: list[list[float]] = []  # wanted places of neighbours that touch
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], step) - _last(groups[-2], step) < step:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_first(group, step) + step * i for group in groups for i in range(len(group))]


def _first(group: Sequence[float], step: float) -> float:
    return sum(group) / len(group) - step * (len(group) - 1) / 2


def _last(group: Sequence[float], step: float) -> float:
    return sum(group) / len(group) + step * (len(group) - 1) / 2


def _hover(places: list[Spec], along: str, channel: Spec | None = None) -> Spec:
    """Return transparent bars along an axis that carry text for the pointer and for ears.

    Not the "nearest" selection: in a layered chart its tooltip says "undefined".
    """
    moves = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["from"]}
    here = {"name": f"near_{along}", "select": moves}
    place = {along: (channel or _x()) | {"field": "from"}, f"{along}2": {"field": "to"}}
    return {
        "data": {"values": places},
        "params": [here],
        "mark": {"type": "rect", "color": "var(--quiet)"},
        "encoding": {
            **place,
            "tooltip": {"field": "tip", "type": "nominal"},
            "description": {"field": "tip", "type": "nominal"},
            "opacity": {"condition": {"param": here["name"], "empty": False, "value": 0.12},
                        "value": 0},
        },
    }  # fmt: skip


def _round_tip(x: float, series: Sequence[Series], write: Callable[[float], str]) -> str:
    texts = [f"round {x:g}"]
    for each in series:
        for point in each.points:
            if point.x == x:
                texts.append(f"{each.name}: {write(point.y)}{_spread(point, write)}")
    return "\n".join(texts)


def _spread(point: Point, write: Callable[[float], str]) -> str:
    """Return the band and the number of values in words."""
    parts = [] if point.low is None or point.high is None else [
        f"{write(point.low)} to {write(point.high)}"
    ]  # fmt: skip
    parts += [] if point.n is None else [f"n = {point.n}"]
    return f" ({', '.join(parts)})" if parts else ""


def _row_tip(name: str, row: int, series: Sequence[Dots], write: Callable[[float], str]) -> str:
    texts = [name]
    for each in series:
        if each.values[row]:
            ends = each.ends[row] if each.ends is not None else None
            about = f" ({write(ends[0])} to {write(ends[1])})" if ends else ""
            texts.append(f"{each.name}: {', '.join(map(write, each.values[row]))}{about}")
    return "\n".join(texts)


def _entry(each: Series | Dots, number: int, kind: str) -> Spec:
    """Return the legend's line of a series; ``series`` are the numbers that it hides."""
    return {
        "name": each.name,
        "colour": (each.key if isinstance(each, Series) else None) or each.colour,
        "kind": kind,
        "dash": list(each.dash) if isinstance(each, Series) else [],
        "shape": each.shape,
        "small": isinstance(each, Dots) and each.small,
        "series": [number],
    }


def legend_of(series: Iterable[Series]) -> list[Spec]:
    """Return the legend's lines of series that are drawn elsewhere."""
    return [_entry(each, number, "line") for number, each in enumerate(series)]


def once(legend: Iterable[Mapping[str, Any]]) -> tuple[Spec, ...]:
    """Return each name once; series of one name are hidden together."""
    found: dict[str, Spec] = {}
    for entry in legend:
        known = found.setdefault(entry["name"], {**entry, "series": []})
        known["series"] = [*known["series"], *entry["series"]]
    return tuple(found.values())
