"""Pictures show a text's own characters: nothing acts, nothing is left out, no boxes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app.shown.pictures import DrawingError, picture, picture_names, save
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY

UNASSIGNED = "\u0378"


def texts_of(texts: list[str]) -> dict[str, Any]:
    """A picture with each text as a tick, a title and a label."""
    return {
        "title": texts,
        "data": {"values": [{"name": text, "y": i} for i, text in enumerate(texts)]},
        "mark": "text",
        "encoding": {
            "x": {"field": "name", "type": "nominal", "axis": {"labelLimit": 0}},
            "text": {"field": "name", "type": "nominal"},
        },
    }


def shown(svg: Path) -> set[str]:
    """The texts of an SVG file."""
    from html import unescape

    return {unescape(text) for text in re.findall(r">([^<>]+)</(?:text|tspan)>", svg.read_text())}


def test_every_place_of_a_picture_takes_any_text(tmp_path: Path) -> None:
    texts = [*HOSTILE, *ORDINARY]
    spec = texts_of([picture(text) for text in texts])
    paths = save({tmp_path / f"a.{kind}": spec for kind in ("svg", "png", "pdf")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
    found = shown(tmp_path / "a.svg")
    assert not any(ACTING.search(text) for text in found)
    assert {"$0-$50", "[/closed]", "_hidden", "العربية", r"red\x1b[31m\x1b]0;title\x07"} <= found


def test_a_text_that_was_forgotten_acts_on_nothing(tmp_path: Path) -> None:
    (path,) = save({tmp_path / "a.svg": texts_of(list(HOSTILE))})
    text = path.read_text()
    assert not ACTING.search(text)
    assert "<b>" not in text


def test_what_no_font_has_is_its_code_point(tmp_path: Path) -> None:
    (path,) = save({tmp_path / "a.svg": texts_of([f"a{UNASSIGNED}b", "é Ж ع ש ½"])})
    assert {r"a\u0378b", "é Ж ع ש ½"} <= shown(path)


def test_names_are_told_apart() -> None:
    assert picture_names(["x" * 200 + "A", "x" * 200 + "B"], 24)[0].endswith("A")
    assert len(set(picture_names(["e\u0301", "\u00e9"], 24))) == 2
    assert picture("a\nb") == r"a\nb"


def test_a_spec_that_cannot_be_drawn_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DrawingError, match="pictures cannot be drawn"):
        save({tmp_path / "a.png": {"mark": {"type": 1}}})
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_drawn_can_still_fork(tmp_path: Path) -> None:
    """The JavaScript engine works in a process of its own: after it, forked children would hang."""
    code = (
        "import os, sys; from pathlib import Path; from fedmoe_app.shown.pictures import save\n"
        "spec = {'data': {'values': [{'a': 1}]}, 'mark': 'point'}\n"
        "save({Path(sys.argv[1], 'one.png'): spec})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    save({Path(sys.argv[1], 'two.png'): spec}); os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == 0
    assert (tmp_path / "two.png").stat().st_size > 100
