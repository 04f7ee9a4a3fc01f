"""Heat maps as Vega-Lite specs: two axes of a cube as rows and columns.

On the page the numbers are a signal, not the data set: the data set is a sequence of the cells that
are drawn, and each looks its number up in the flat list of its cube. So a million numbers need no
million row objects, and two maps share one list. The axes that are neither rows nor columns are
signals, too: ``at0`` for the first axis of the cube, and so on; the page moves them.

In a file the numbers of one map stand in its data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fedmoe_app.report.charts import SCHEMA, Chart, Spec, percent
from fedmoe_app.report.cubes import OTHER, Axis, Cube, short

# With so many cells, one outlier does not set the scale.
MANY_CELLS, USUAL = 500, 0.995
WIDE = 0.5  # from here on the scale shows all cosines
SEQUENTIAL, DIVERGING = "viridis", "blueorange"  # both safe for colour-vision deficiency
MANY_ROWS = 24
LEAST_STEP, NAMED_STEP, MOST_STEP = 9, 15, 34  # pixels of a column in a file
NO_NUMBER = "no number"
# A cell shows its number where it has room, which on the page its width decides.
_ROOMY = "bandwidth('x') > 25 && bandwidth('y') > 14"
DIGIT = 6.3  # pixels of one in a file


class Map(NamedTuple):
    """One heat map: which numbers, which way round, on which scale.

    ``form`` is ``share``, ``number`` or ``count``. Colours go from ``low`` to ``high`` (None: the
    largest value), and at least to ``least``; around ``middle``, where there is one, as far below
    as above.
    """

    title: str
    about: str
    cube: str
    rows: str
    columns: str
    form: str = "share"
    high: float | None = None
    least: float = 0.0
    middle: float | None = None
    label: str = ""  # of the colour scale


class Scale(NamedTuple):
    """The ends of a colour scale; ``cut`` when there are larger values."""

    low: float
    high: float
    cut: bool


def scale_of(each: Map, values: np.ndarray, rows: int, columns: int) -> Scale:
    """Return the scale that all these values share; nan does not count.

    Of pairs of clients those of a client with itself, always 1, do not count either: they would
    hide that all others are near 0.

    Args:
        each: what is drawn.
        values: of all panels, or places of the sliders.
        rows: the dimension of ``values`` that goes down.
        columns: the one that goes right.
    """
    pairs = each.columns == OTHER
    if pairs:
        values = np.moveaxis(values, (rows, columns), (-2, -1))
        values = np.where(np.eye(values.shape[-1], dtype=bool), np.nan, values)
    finite = values[np.isfinite(values)]
    middle = each.middle or 0.0
    far = np.abs(finite - middle) if each.middle is not None else finite
    most = float(far.max(initial=0.0))
    usual = float(np.quantile(far, USUAL)) if far.size > MANY_CELLS else most
    top = max(usual, each.least) if each.high is None else each.high - middle
    if top <= 0 or (pairs and top >= WIDE):
        top = 1.0
    low = middle - top if each.middle is not None else 0.0
    return Scale(max(low, 0.0) if middle > 0 else low, middle + top, most > top * 1.000001)


def page_map(each: Map, cube: Cube) -> Chart:
    """Return a map for the page, in which the reader moves along the other axes of the cube."""
    names = [axis.name for axis in cube.axes]
    rows, columns = (cube.axes[names.index(name)] for name in (each.rows, each.columns))
    index = []
    params: list[Spec] = [{"name": "cube", "value": []}]
    for number, axis in enumerate(cube.axes):
        step = math.prod(len(after.labels) for after in cube.axes[number + 1 :])
        place = {each.rows: "datum.r", each.columns: "datum.c"}.get(axis.name, f"at{number}")
        index.append(f"{place} * {step}")
        if axis not in (rows, columns):
            last = len(axis.labels) - 1 if axis.name == "round" else 0
            params.append({"name": f"at{number}", "value": last})
    for name, axis in (("rows", rows), ("columns", columns)):
        params += [
            {"name": name, "value": list(axis.labels)},
            {"name": f"{name}_said", "value": list(map(axis.said, axis.labels))},
        ]
    scale = scale_of(each, cube.values, cube.axes.index(rows), cube.axes.index(columns))
    power = _power(each, scale)
    wide = len(columns.labels)
    data: Spec = {
        "data": {"sequence": {"start": 0, "stop": len(rows.labels) * wide, "as": "i"}},
        "transform": [
            {"calculate": f"floor(datum.i / {wide})", "as": "r"},
            {"calculate": f"datum.i % {wide}", "as": "c"},
            {"calculate": f"cube[{' + '.join(index)}]", "as": "v"},
            {"calculate": "rows[datum.r]", "as": "row"},
            {"calculate": "columns[datum.c]", "as": "column"},
            {"calculate": f"isValid(datum.v) ? {_in_cell(each, power)} : '×'", "as": "text"},
            {"calculate": "rows_said[datum.r] + ', ' + columns_said[datum.c] + '\\n' + "
                          f"(isValid(datum.v) ? {_whole(each)} : '{NO_NUMBER}')", "as": "said"},
        ],
    }  # fmt: skip
    spec = {"$schema": SCHEMA, "description": f"{each.title}. {each.about}", "params": params,
            "width": {"step": 20}, **data,
            **_drawn(each, rows, columns, scale, power, _ROOMY)}  # fmt: skip
    return Chart(each.title, spec, about=each.about, cube=each.cube, columns=wide)


def file_map(
    each: Map, title: str | list[str], rows: Axis, columns: Axis, values: np.ndarray, scale: Scale,
    legend: bool = True,
) -> Spec:  # fmt: skip
    """Return a map for a file: one matrix, with the numbers as rows of its data.

    Args:
        each: what is drawn.
        title: of this panel.
        rows: names of the R rows.
        columns: names of the C columns.
        values: ``[R, C]``; nan where there is none.
        scale: that all panels of the picture share.
        legend: whether this panel shows the scale.
    """
    power = _power(each, scale)
    cells = [
        {"row": row, "column": column, "v": short(value), "text": _text(each, value, power),
         "said": f"{rows.said(row)}, {columns.said(column)}"}
        for row, line in zip(rows.labels, values.tolist(), strict=True)
        for column, value in zip(columns.labels, line, strict=True)
    ]  # fmt: skip
    least = NAMED_STEP if _are_names(columns) else LEAST_STEP
    step = max(least, min(MOST_STEP, 560 // len(columns.labels)))
    longest = max(len(str(cell["text"])) for cell in cells)
    roomy = str(step >= DIGIT * longest + 2 and len(rows.labels) <= MANY_ROWS).lower()
    drawn = _drawn(each, rows, columns, scale, power, roomy, legend)
    return {"title": title, "width": {"step": step}, "data": {"values": cells}, **drawn}


def _drawn(
    each: Map, rows: Axis, columns: Axis, scale: Scale, power: int, roomy: str, legend: bool = True,
) -> Spec:  # fmt: skip
    """Return height, cells and their numbers."""
    many = _are_names(columns)
    turned = {"labelAngle": -90, "labelBaseline": "middle"} if many else {"labelAngle": 0}
    x = {
        "field": "column", "type": "ordinal", "title": columns.name or None,
        "scale": {"domain": list(columns.labels)},
        "axis": {"orient": "bottom" if many else "top", "ticks": False, "domain": False,
                 "labelOverlap": False if many else "greedy", **turned},
    }  # fmt: skip
    y = {
        "field": "row", "type": "ordinal", "title": rows.name,
        "scale": {"domain": list(rows.labels)},
        "axis": {"ticks": False, "domain": False, "labelOverlap": "greedy"},
    }  # fmt: skip
    colour = {
        "field": "v", "type": "quantitative",
        "legend": _legend(each, scale, power) if legend else None,
        "scale": {"scheme": SEQUENTIAL, "domain": [scale.low, scale.high], "clamp": True},
    }  # fmt: skip
    if each.middle is not None:
        colour["scale"] = {"scheme": DIVERGING, "domain": [scale.low, each.middle, scale.high],
                           "clamp": True}  # fmt: skip
    return {
        "height": {"step": 22 if len(rows.labels) <= MANY_ROWS else 14},
        "encoding": {"x": x, "y": y, "tooltip": {"field": "said", "type": "nominal"}},
        "layer": [
            {
                # Without "show" a cell that has no number is left out; its colour is in CONFIG.
                "mark": {"type": "rect", "invalid": "show", "stroke": "var(--panel)",
                         "strokeWidth": 1},
                "encoding": {"color": colour, "description": {"field": "said", "type": "nominal"}},
            },
            {
                "mark": {"type": "text", "fontSize": 11, "aria": False},
                "encoding": {
                    "text": {"field": "text", "type": "nominal"},
                    "color": {"condition": [{"test": "!isValid(datum.v)", "value": "var(--quiet)"},
                                            {"test": _is_dark(each, scale), "value": "#ffffff"}],
                              "value": "#111111"},
                    "opacity": {"condition": {"test": f"!isValid(datum.v) || ({roomy})",
                                              "value": 1}, "value": 0},
                },
            },
        ],
    }  # fmt: skip


def _are_names(columns: Axis) -> bool:
    """Tell whether the columns are named, which is written upwards, rather than numbered."""
    return max(map(len, columns.labels)) > 4


def _legend(each: Map, scale: Scale, power: int) -> Spec:
    parts = [each.label or each.title]
    if scale.cut:
        parts.append("larger values have the last colour")
    if each.form == "share":
        parts.append("in cells: %")
    if power:
        parts.append(f"in cells: times 10^{power}")
    written = {"share": {"format": ".3~p"}, "count": {"format": "d"}}.get(
        each.form, {"format": ".3~g"}
    )
    return {"title": parts, "direction": "horizontal", "gradientLength": 180,
            "gradientThickness": 12, "tickCount": 3, **written}  # fmt: skip


def _is_dark(each: Map, scale: Scale) -> str:
    """Return the test whether a cell needs white ink."""
    if each.middle is None:
        return f"datum.v < {scale.low + 0.6 * (scale.high - scale.low)}"
    half = scale.high - each.middle
    return f"abs(datum.v - {each.middle}) > {0.7 * half}"


def _power(each: Map, scale: Scale) -> int:
    """Return the power of ten that numbers in cells are multiples of, where all are small."""
    most = max(abs(scale.low), abs(scale.high))
    return math.floor(math.log10(most)) if each.form == "number" and most < 0.05 else 0


def _in_cell(each: Map, power: int) -> str:
    """Return the expression of a cell's own number, as short as it can be."""
    if each.form == "share":
        return "format(100 * datum.v, '.0f')"
    if each.form == "count":
        return "format(datum.v, '.0f')"
    return f"format(datum.v / {10.0**power:g}, '{'.1f' if power else '.2f'}')"


def _text(each: Map, value: float, power: int) -> str:
    """Return what :func:`_in_cell` computes on the page."""
    if not math.isfinite(value):
        return "×"
    if each.form == "number":
        return f"{value / 10.0**power:z.{1 if power else 2}f}"
    return f"{100 * value if each.form == 'share' else value:.0f}"


def _whole(each: Map) -> str:
    """Return the expression of the number under the pointer."""
    return {"share": "format(100 * datum.v, '.1f') + ' %'", "count": "format(datum.v, ',')"}.get(
        each.form, "format(datum.v, '.3~g')"
    )


def equal_use(parts: int) -> str:
    """Return what an equal share of ``parts`` is: ``1/8 = 12.5 %``."""
    return f"1/{parts} = {percent(1 / parts)}"


def matrix(cube: Cube, rows: str, columns: str, **place: Any) -> np.ndarray:
    """Return the matrix ``[R, C]`` of a cube at a place on its other axes.

    Args:
        cube: whose numbers.
        rows: name of the axis that goes down.
        columns: name of the axis that goes right.
        place: index on each other axis, by its name.
    """
    names = [axis.name for axis in cube.axes]
    index = tuple(slice(None) if n in (rows, columns) else place[n] for n in names)
    found = cube.values[index]
    return found if names.index(rows) < names.index(columns) else found.T
