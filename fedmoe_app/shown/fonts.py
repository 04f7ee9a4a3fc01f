"""Fonts of this machine that can draw what matplotlib's own cannot, such as Chinese.

matplotlib draws a box where the fonts that it was told of lack a character, and warns of each one.
Here the other installed fonts are looked through, once a process, and only when it is needed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.font_manager import FontEntry, FontProperties

MAX_FONTS = 300  # that are opened
# Fonts of matplotlib's that draw a sign for every missing character, or other signs for letters.
_ODD = ("Last Resort", "STIX", "cm")


def can_draw(character: str) -> bool:
    """Tell whether this machine has a font with the character, or there is nothing to draw."""
    if character.isspace() or unicodedata.category(character) == "Cf" or _is_selector(character):
        return True
    return ord(character) in _characters(_own()) or _font_with(ord(character)) is not None


def families_for(text: str) -> list[str]:
    """Return the names of the fonts, beside matplotlib's own, that a text needs."""
    own = _characters(_own())
    found = (_font_with(ord(character)) for character in text if ord(character) not in own)
    return list(dict.fromkeys(entry.name for entry in found if entry is not None))


def look_again() -> None:
    """Forget which fonts there are, after one was added to matplotlib's list."""
    for found in (_font_with, _others):
        found.cache_clear()


def _is_selector(character: str) -> bool:
    """Tell whether a character only chooses between two forms of the one before it."""
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


@cache
def _font_with(code: int) -> FontEntry | None:
    return next((entry for entry in _others() if code in _characters(entry.fname)), None)


@cache
def _own() -> str:
    return font_manager.findfont(FontProperties())


@cache
def _others() -> tuple[FontEntry, ...]:
    """Return one regular font of each family, those for reading on a screen first."""
    entries: Iterable[FontEntry] = font_manager.fontManager.ttflist
    regular = [
        entry
        for entry in entries
        if entry.style == "normal" and entry.weight in (400, "normal", "regular")
        and not entry.name.startswith(_ODD)
    ]  # fmt: skip
    regular.sort(key=lambda entry: ("Sans" not in entry.name, entry.name))
    by_name: dict[str, FontEntry] = {}
    for entry in regular:
        by_name.setdefault(entry.name, entry)
    return tuple(by_name.values())[:MAX_FONTS]


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points that a font has; none where it cannot be read."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
