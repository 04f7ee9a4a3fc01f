r"""Numbers in texts, by their exact value, in the ways that people and models write them.

Read as one number are

- a sign: hyphen, minus (U+2212), non-breaking hyphen, figure or en dash, full-width forms, right
  before the number; but not where something to subtract from stands before it: "10-5" ends in 5. An
  em dash is punctuation.
- thousands: commas anywhere (as lm-evaluation-harness takes them); in groups of three also spaces
  (ordinary, no-break, narrow, thin, figure), apostrophes, LaTeX's ``{,}``, ``\,`` and ``\!``, and,
  from two groups on, full stops. After spaces, apostrophes and full stops a comma is decimal.
- an exponent: ``1e3``, ``1.5×10^3`` (also x, \*, ·, ``\times``, ``\cdot``; ``**``; superscripts;
  braces), ``10^3``.
- a fraction: ``1/2``, ``3 1/2``, ``½``, ``3½``, ``\frac{1}{2}``, ``3\frac{1}{2}``. ``1/2/2024``
  and ``1/0`` are none: they end in 2024 and in 0.

Currency and percent signs are units and do not count: "50%" is 50, as where the question asks for a
percentage. Numbers of more than ``MAX_DIGITS`` characters, or with an exponent beyond
±``MAX_EXPONENT``, are none: their values would fill the memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from fractions import Fraction

MAX_DIGITS = 1000
MAX_EXPONENT = 1000

_CURRENCY = "$€£¥₹"
_SPACES = " \u00a0\u2007\u2009\u202f"

_SAME = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-")
    | dict.fromkeys("\u2044\u2215", "/")
    | dict.fromkeys("·⋅∙", "×")
    | {"’": "'"}
)
_LATEX = {
    r"\$": "$",
    r"\%": "%",
    r"\times": "×",
    r"\cdot": "×",
    r"\!": "",
    r"\,": "\u2009",
    "{,}": ",",
}
_IN_LATEX = re.compile("|".join(map(re.escape, _LATEX)))
_VULGAR = re.compile(r"(\d?) ?([¼-¾⅐-⅞↉])")
_SUPERSCRIPT = re.compile(r"(?<=(?<!\d)10)[⁺⁻]?[⁰¹²³⁴-⁹]+")
_GROUPED = re.compile(
    rf"(?<![\w.,/^])[1-9]\d{{0,2}}"
    rf"(?:(?P<sep>[{_SPACES}'])\d{{3}}(?:(?P=sep)\d{{3}})*|(?:\.\d{{3}}){{2,}}(?!\.\d))"
    r"(?!\d| ?/)(?:,(?P<decimals>\d+))?"
)

_PLAIN = r"(?:\d[\d,]*+(?:\.\d++)?+|\.\d++)"
_WHOLE = r"\d++(?:,\d++)*+"
_POWER = r"10(?:\^|\*\*)\{?(?P<%s>[+-]?\d++)\}?"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}%])-)?
    (?:[{_CURRENCY}][ ]?)?
    (?:
      (?:(?P<whole>{_WHOLE})[ ]?)? \\[dt]?frac
        (?: \{{[ ]?(?P<minus>-)?(?P<top>{_PLAIN})[ ]?\}}[ ]?\{{[ ]?(?P<bottom>{_PLAIN})[ ]?\}}
          | (?P<top_digit>\d)(?P<bottom_digit>\d) )
    | (?<!/)(?<!/[ ]) (?:(?P<slash_whole>{_WHOLE})[ ](?={_WHOLE}/))?
        (?P<slash_top>{_PLAIN})[ ]?/[ ]?(?P<slash_bottom>{_PLAIN}) (?![ ]?/[ ]?\d)
    | {_POWER % "power"}
    | (?P<plain>{_PLAIN})
        (?: [eE](?P<exponent>[+-]?\d++)(?!\w) | [ ]?[×xX*][ ]?{_POWER % "times"} )?
    )
    """,
    re.VERBOSE,
)
_WHOLE_TEXT = re.compile(rf"[+{_CURRENCY}]?(?:{_NUMBER.pattern})[ ]?[%{_CURRENCY}]?\.?", re.VERBOSE)


def first_number(text: str) -> Fraction | None:
    """Return the first number of a text; None if there is none, or it is too large."""
    found = _NUMBER.search(_normalised(text))
    return _value(found) if found else None


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text; None if there is none, or it is too large."""
    last = deque(_NUMBER.finditer(_normalised(text)), maxlen=1)
    return _value(last[0]) if last else None


def has_number(text: str) -> bool:
    """Tell whether a number stands in a text, of any size."""
    return _NUMBER.search(_normalised(text)) is not None


def whole_number(text: str) -> Fraction | None:
    """Return the number that a text is, with its unit sign and full stop; None if it is more."""
    found = _WHOLE_TEXT.fullmatch(_normalised(text.strip()))
    return _value(found) if found else None


def _normalised(text: str) -> str:
    """Write each kind of sign in one way, and thousands without separators."""
    text = _IN_LATEX.sub(lambda found: _LATEX[found.group()], text).translate(_SAME)
    text = _SUPERSCRIPT.sub(_as_power, text)
    return _VULGAR.sub(_as_fraction, _GROUPED.sub(_ungrouped, text))


def _ungrouped(found: re.Match[str]) -> str:
    decimals = found["decimals"]
    whole = found.group() if decimals is None else found.group()[: -len(decimals) - 1]
    digits = "".join(filter(str.isdecimal, whole))
    return digits if decimals is None else f"{digits}.{decimals}"


def _as_power(found: re.Match[str]) -> str:
    return "^" + unicodedata.normalize("NFKC", found.group()).replace("\u2212", "-")


def _as_fraction(found: re.Match[str]) -> str:
    fraction = unicodedata.normalize("NFKC", found[2]).replace("\u2044", "/")
    return f"{found[1]} {fraction}" if found[1] else found.group()[:-1] + fraction


def _value(found: re.Match[str]) -> Fraction | None:
    parts = found.groupdict()
    value = _unsigned(parts)
    if value is None:
        return None
    return -value if bool(parts["sign"]) != bool(parts["minus"]) else value


def _unsigned(parts: dict[str, str | None]) -> Fraction | None:
    for top, bottom, whole in (
        ("top", "bottom", "whole"),
        ("top_digit", "bottom_digit", "whole"),
        ("slash_top", "slash_bottom", "slash_whole"),
    ):
        if parts[top]:
            return _quotient(_decimal(parts[top]), _decimal(parts[bottom]), _decimal(parts[whole]))
    mantissa = _decimal(parts["plain"] or "1")
    return _scaled(mantissa, parts["power"] or parts["times"] or parts["exponent"] or "0")


def _decimal(digits: str | None) -> Fraction | None:
    """Return the value of digits with commas; None if there are none or too many."""
    if digits is None or len(digits) > MAX_DIGITS:
        return None
    return Fraction(digits.replace(",", ""))


def _quotient(
    top: Fraction | None, bottom: Fraction | None, whole: Fraction | None
) -> Fraction | None:
    """Value of a fraction; of "1/0" the 0; a whole number before a proper fraction is added."""
    if top is None or bottom is None:
        return None
    if bottom == 0:
        return bottom
    return top / bottom + (whole if whole is not None and top < bottom else 0)


def _scaled(mantissa: Fraction | None, exponent: str) -> Fraction | None:
    if mantissa is None or len(exponent) > MAX_DIGITS or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return mantissa * Fraction(10) ** int(exponent)
