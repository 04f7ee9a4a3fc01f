"""Pictures show a text's own characters: no mathematics, no boxes, nothing left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedmoe_app.shown import fonts
from fedmoe_app.shown.pictures import legend_name, picture, picture_names, save
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY

HIEROGLYPH = "\U00013080"  # 𓂀, in no font that matplotlib brings


def drawn(text: str, **options: bool) -> np.ndarray:
    """Return the pixels of a text, ``[H, W, 4]``."""
    figure = Figure(figsize=(7, 0.5))
    figure.text(0.01, 0.3, text, **options)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize(
    "text", ["$0-$50", "$a_{$", "100% & \\frac", "$x$", "\\$5", "\\$5 $6$", "^_{}#~", "a$"]
)
def test_dollars_are_dollars(text: str) -> None:
    assert np.array_equal(drawn(picture(text)), drawn(text, parse_math=False))


def test_every_place_of_a_picture_takes_any_text(tmp_path: Path) -> None:
    texts = (*HOSTILE, *ORDINARY)
    figure = Figure(figsize=(20, 20), layout="constrained")
    axes = figure.subplots()
    for text in map(picture, texts):
        assert not ACTING.search(text)
        assert "\n" not in text
        axes.plot([0, 1], [0, 1], label=legend_name(text))
        axes.text(0, 0, text)
    names = picture_names(texts, 30)
    axes.set_xticks(range(len(names)), names, rotation=60)
    axes.set(title=" ".join(map(picture, texts)), ylabel=picture(texts[3]))
    assert len(figure.legend().get_texts()) == len(texts)
    figure.colorbar(axes.imshow([[0, 1]]), label=picture(texts[4]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("png", "svg", "pdf"):
            assert save(figure, tmp_path / f"a.{kind}").stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 3


def test_a_text_that_was_forgotten_is_no_mathematics_and_costs_no_run(tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("$a_{$ 中 " + HIEROGLYPH)
    axes.set_xticks([0, 1], ["$a_{$", "$50_$"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "a.png")


def test_names_that_begin_with_an_underscore_stand_in_the_legend() -> None:
    axes = Figure().subplots()
    axes.plot([0], [0], label=legend_name(picture("_mine")))
    assert [text.strip() for text in axes.get_legend_handles_labels()[1]] == ["_mine"]


@pytest.fixture
def fresh_fonts() -> Iterator[None]:
    """Fonts are looked for anew, before and after the test."""
    before = list(font_manager.fontManager.ttflist)
    fonts.look_again()
    yield
    font_manager.fontManager.ttflist[:] = before
    fonts.look_again()


def without_other_fonts() -> None:
    font_manager.fontManager.ttflist[:] = [
        entry for entry in font_manager.fontManager.ttflist if "DejaVu" in entry.name
    ]


def write_font(path: Path, character: str) -> None:
    """Write a font with one character, a filled square."""
    pen = TTGlyphPen(None)
    for move, point in zip(
        (pen.moveTo, pen.lineTo, pen.lineTo, pen.lineTo),
        ((0, 0), (0, 700), (700, 700), (700, 0)),
        strict=True,
    ):
        move(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Square Sans", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


def test_what_no_font_has_is_its_code_point(fresh_fonts: None) -> None:
    without_other_fonts()
    assert picture(f"a{HIEROGLYPH}中") == r"a\U00013080\u4e2d"
    assert picture("é Ж ع ש ½") == "é Ж ع ש ½"
    assert picture_names(["中文", "日本"], 24) == [r"\u4e2d\u6587", r"\u65e5\u672c"]


def test_an_installed_font_draws_what_matplotlibs_own_lacks(
    fresh_fonts: None, tmp_path: Path
) -> None:
    without_other_fonts()
    write_font(tmp_path / "square.ttf", HIEROGLYPH)
    font_manager.fontManager.addfont(tmp_path / "square.ttf")
    assert picture(f"a{HIEROGLYPH}") == f"a{HIEROGLYPH}"
    figure = Figure(figsize=(2, 1))
    text = figure.text(0.1, 0.1, picture(HIEROGLYPH), fontsize=50)
    save(figure, tmp_path / "a.png")
    assert text.get_fontfamily()[-1] == "Square Sans"
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    black = np.asarray(canvas.buffer_rgba())[:, :, 0] < 128
    rows, columns = black.nonzero()
    # The square is filled; a box for a missing character is empty inside.
    assert black.sum() > 0.95 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
