"""Picture files: charts and maps side by side, with a title and one legend, in printed colours.

A file is one Vega-Lite spec, put together of those of the page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from fedmoe_app.report.charts import CONFIG, SCHEMA, Chart, Spec, once
from fedmoe_app.shown.pictures import DrawingError, save

logger = logging.getLogger("fedmoe")

WIDTH = 430  # pixels of a chart
MAX_COLUMNS = 4  # of panels
# The style sheet's colours of a light page, on white paper.
PRINTED = {
    "--ground": "#ffffff", "--panel": "#ffffff", "--text": "#1c2330", "--quiet": "#5a6475",
    "--grid": "#e4e7ec", "--line": "#d5d9e0", "--none": "#e3e5ea", "--bad": "#a8321f",
    "--c0": "#000000", "--c1": "#0072b2", "--c2": "#d55e00", "--c3": "#009e73", "--c4": "#b4578a",
    "--c5": "#2f95cf", "--c6": "#b87900", "--c7": "#7a7f88",
}  # fmt: skip
FONT = "Liberation Sans, DejaVu Sans, sans-serif"
_COLOUR = re.compile(r"var\((--[a-z0-9]+)\)")
_LETTER = 6.4  # pixels of an average one in a legend
_OWN = {"scale": {"color": "independent", "shape": "independent", "strokeDash": "independent",
                  "size": "independent", "x": "independent", "y": "independent"}}  # fmt: skip


def picture_of(
    parts: Iterable[Spec], legend: Sequence[Spec] = (), width: int = 2, pixels: int | None = None
) -> Spec:
    """Return a whole picture: parts below each other, and under them what the lines are.

    Args:
        parts: charts in a row or panels, see :func:`beside` and :func:`panels`.
        legend: entries of :class:`Chart`; equal names stand once.
        width: charts in the widest row.
        pixels: that the legend may take; None for those of so many charts.
    """
    drawn = [*parts]
    if entries := once(legend):
        drawn.append(_legend(entries, pixels or width * (WIDTH + 40)))
    spec: Spec = {
        "$schema": SCHEMA,
        "config": CONFIG | {"font": FONT, "background": "white"},
        "padding": 14,
        "params": [{"name": "hidden", "value": []}],
        "vconcat": drawn,
        "spacing": 22,
        "resolve": _OWN,
    }
    return _ink(spec)


def write_pictures(specs: Mapping[Path, Spec], points: float | None = None) -> list[Path]:
    """Write picture files and return their paths; none, with a warning, where that fails.

    What is drawn took long to compute: a run or a comparison must not fail for its pictures.

    Args:
        specs: a picture for each file.
        points: the width that each is scaled to, 72 an inch; None leaves it.
    """
    try:
        return save(specs, points)
    except DrawingError as error:
        logger.warning("%s", error)
        return []


def beside(charts: Sequence[Chart], width: int = WIDTH) -> Spec:
    """Return charts of the page in a row; one without a title gets none."""
    drawn = [sized(chart, width) for chart in charts]
    return {"hconcat": drawn, "spacing": 34, "resolve": _OWN}


def panels(maps: Sequence[Spec], columns: int = MAX_COLUMNS) -> Spec:
    """Return maps, or charts of one size, in a grid."""
    return {"concat": list(maps), "columns": columns, "spacing": 22, "resolve": _OWN}


def alone(drawn: Spec) -> Spec:
    """Return one map as a whole picture, with its own title."""
    return _ink({"$schema": SCHEMA, "padding": 14, **drawn,
                 "config": CONFIG | {"font": FONT, "background": "white"}})  # fmt: skip


def sized(chart: Chart, width: int, height: int | None = None) -> Spec:
    """Return a chart of the page as a part of a picture; None keeps its height."""
    left_out = ("$schema", "autosize", "params")
    spec = {key: value for key, value in chart.spec.items() if key not in left_out}
    title = {"title": titled(chart.title, chart.about, width)} if chart.title else {}
    tall = {} if height is None else {"height": height}
    return {**title, **spec, "width": width, **tall}


def titled(title: str, about: str, width: float) -> Spec:
    """Return a title with what it means under it, in lines of ``width`` pixels."""
    below = {"subtitle": wrap(about, int(width / _LETTER))} if about else {}
    return {"text": title, "offset": 8, "subtitleColor": "var(--quiet)", "subtitlePadding": 5,
            **below}  # fmt: skip


def _legend(entries: Sequence[Spec], width: float) -> Spec:
    """Return a view with a sample of each line, mark and bar, and its name.

    Vega's own legend draws a mark with the dashes of its line, and cuts long names.
    """
    room = 44 + _LETTER * max(len(entry["name"]) for entry in entries)
    columns = max(1, min(len(entries), int(width // room)))
    rows = [
        {
            "x": (number % columns) * room, "to": (number % columns) * room + 30,
            "middle": (number % columns) * room + 15, "at": (number % columns) * room + 38,
            "y": (number // columns) * 20 + 8, "name": entry["name"], "colour": entry["colour"],
            "kind": entry["kind"], "dash": entry.get("dash") or [1, 0],
            "shape": _mark(entry), "size": 18 if entry.get("small") else 60,
            "solid": 0.25 if entry["kind"] == "area" else 1,
        }
        for number, entry in enumerate(entries)
    ]  # fmt: skip

    def at(field: str) -> Spec:
        return {"field": field, "type": "quantitative", "scale": None, "axis": None}

    def plain(field: str, kind: str = "nominal") -> Spec:
        return {"field": field, "type": kind, "scale": None, "legend": None}

    colour, y = plain("colour"), at("y")
    lines = {
        "transform": [{"filter": "datum.kind == 'line'"}],
        "mark": {"type": "rule", "strokeWidth": 2.2, "aria": False},
        "encoding": {"x": at("x"), "x2": {"field": "to"}, "y": y, "color": colour,
                     "strokeDash": plain("dash")},
    }  # fmt: skip
    marks = {
        "transform": [{"filter": "isValid(datum.shape)"}],
        "mark": {"type": "point", "filled": True, "aria": False},
        "encoding": {"x": at("middle"), "y": y, "color": colour, "shape": plain("shape"),
                     "size": plain("size", "quantitative"),
                     "opacity": plain("solid", "quantitative")},
    }  # fmt: skip
    names = {
        "mark": {"type": "text", "align": "left", "baseline": "middle", "aria": False},
        "encoding": {"x": at("at"), "y": y, "text": {"field": "name", "type": "nominal"}},
    }
    return {
        "width": room * columns, "height": 20 * (rows[-1]["y"] // 20 + 1),
        "data": {"values": rows}, "layer": [lines, marks, names],
    }  # fmt: skip


def _mark(entry: Spec) -> str | None:
    """Return the path of an entry's mark; bars and areas have a square."""
    return "square" if entry["kind"] in ("bar", "area") else entry.get("shape")


def _ink(value: Any) -> Any:
    """Put printed colours in the place of the style sheet's."""
    if isinstance(value, str):
        found = _COLOUR.fullmatch(value)
        return PRINTED[found[1]] if found and found[1] in PRINTED else value
    if isinstance(value, dict):
        return {key: _ink(item) for key, item in value.items()}
    return [_ink(item) for item in value] if isinstance(value, list | tuple) else value
