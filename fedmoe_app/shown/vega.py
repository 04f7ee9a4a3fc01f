"""A program that turns Vega-Lite specs into files; ``pictures`` starts it, nobody imports it.

vl-convert runs Vega in a JavaScript engine, and a process in which that has worked must not fork
any more: the child would hang. So it works in this process only, and the ServerApp's, which a warm
SuperExec forks, and a user's own stay as they are. It needs vl-convert and the standard library.

Standard input is a JSON object. ``{"files": [{"spec", "path", "kind"}, ...]}`` writes each spec as
``png``, ``svg`` or ``pdf``, beside it ``"points"`` is the width they are scaled to; ``{"bundle":
path}`` writes the JavaScript of Vega for a page.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

# Pixels of a file for each of the spec.
SCALE = 2.0
PRINTED = 300.0  # pixels an inch of a picture that is scaled to a width on paper
_SIZE = re.compile(r'width="([0-9.]+)" height="([0-9.]+)"')
FONT = "Liberation Sans, DejaVu Sans, sans-serif"
SNIPPET = "window.vegaEmbed = vegaEmbed;"
# A code point that no font has, since nothing is assigned to it.
_UNKNOWN = "\U000e1234"


def main() -> None:
    """Do what standard input asks for."""
    asked = json.load(sys.stdin)
    if path := asked.get("bundle"):
        # The bundle declares short names as globals, which would clash with the page's own.
        text = f"(()=>{{{vl_convert.javascript_bundle(SNIPPET)}}})();"
        Path(path).write_text(text, encoding="utf-8")
    for file in asked.get("files", ()):
        spec = drawable(file["spec"])
        points = asked.get("points")
        drawn = fitted(spec, file["kind"], points) if points else draw(spec, file["kind"])
        Path(file["path"]).write_bytes(drawn)


def draw(spec: dict[str, Any], kind: str) -> bytes:
    """Return the spec as a file; it may load nothing."""
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).encode()
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(spec, allowed_base_urls=[])
    return vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=[])


def fitted(spec: dict[str, Any], kind: str, points: float) -> bytes:
    """Return the spec as a file that is ``points`` wide, 72 an inch; its letters shrink with it."""
    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    width, height = (float(found) for found in _SIZE.search(svg).groups())  # type: ignore[union-attr]
    scale = points / width
    if kind != "png":
        unit = "pt" if kind == "svg" else ""  # in a PDF a number is in points
        size = f'width="{points:.2f}{unit}" height="{height * scale:.2f}{unit}"'
        svg = _SIZE.sub(size, svg, count=1)
        return svg.encode() if kind == "svg" else vl_convert.svg_to_pdf(svg)
    return vl_convert.vegalite_to_png(spec, scale=scale, ppi=PRINTED, allowed_base_urls=[])


def drawable(value: Any) -> Any:
    """Return a spec in which what no font can draw is written as its code point."""
    if isinstance(value, str):
        return value if value.isascii() else "".join(map(_or_code, value))
    if isinstance(value, dict):
        return {key: drawable(item) for key, item in value.items()}
    return [drawable(item) for item in value] if isinstance(value, list) else value


@cache
def _or_code(character: str) -> str:
    if character.isascii() or _picture(character) != _picture(_UNKNOWN):
        return character
    return character.encode("unicode_escape").decode()


@cache
def _picture(character: str) -> bytes:
    """Draw one character; all that no font has look the same."""
    return vl_convert.svg_to_png(
        '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">'
        f'<text x="4" y="30" font-size="24" font-family="{FONT}">{character}</text></svg>'
    )


if __name__ == "__main__":
    main()
