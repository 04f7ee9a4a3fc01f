"""Numbers and booleans as people write them, for the advice on a value that TOML does not take."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

_YES, _NO = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_RATIO = re.compile(r"([^/÷]+)[/÷]([^/÷]+)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?P<mark>[,. '_])\d{3}(?:(?P=mark)\d{3})*(?P<rest>[,.]\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?")

BOOLEAN = "a boolean is true or false, in small letters"
PLAIN = "a number is written as 10, 0.5 or 1e-3"
WHOLE = "a whole number is written in digits alone"
FRACTION = "a fraction is written as a decimal number"
PERCENT = "a percentage is written as a share of 1"
POINT = "decimals stand after a point, and nothing stands between thousands"


class Read(NamedTuple):
    """A value that was meant, and the rule that its spelling broke; no value if it is not sure."""

    value: bool | int | float | None
    rule: str


def boolean(text: str) -> Read:
    """Read yes and no in their usual words."""
    word = text.strip().lower()
    return Read(True if word in _YES else False if word in _NO else None, BOOLEAN)


def number(text: str, kind: type) -> Read:
    """Read a number with thousands marks, a decimal comma, as a fraction or a percentage.

    Args:
        text: as it was typed.
        kind: int or float; what is no whole number is no int.
    """
    plain = _plain_signs(text)
    if kind is int and re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", plain):
        return Read(int(plain.replace(",", "")), POINT)  # no decimals in a whole number
    exact, rule = _exact(plain)
    rule = WHOLE if kind is int and rule == PLAIN else rule
    if exact is None or (kind is int and exact.denominator != 1):
        return Read(None, rule)
    try:
        return Read(int(exact) if kind is int else float(exact), rule)
    except OverflowError:
        return Read(None, rule)


def _plain_signs(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).strip().lower()
    for sign, plain in (("−", "-"), ("–", "-"), ("’", "'"), ("⁄", "/")):
        text = text.replace(sign, plain)
    return re.sub(r"(?<=\d)\s+(?=\d)", " ", text)


def _exact(text: str) -> tuple[Fraction | None, str]:
    if text.endswith("%"):
        share, _ = _exact(text[:-1].strip())
        return (None if share is None else share / 100), PERCENT
    if ratio := _RATIO.fullmatch(text):
        above, below = (_exact(part.strip())[0] for part in ratio.groups())
        return (above / below if above is not None and below else None), FRACTION
    if _GROUPED.fullmatch(text) and not re.fullmatch(r"[+-]?0[,.]\d+", text):
        exact = _grouped(text)
        return exact, POINT if exact is not None else _either(text)
    if _DECIMAL_COMMA.fullmatch(text):
        return _fraction(text.replace(",", ".")), POINT
    return (_fraction(text) if _PLAIN.fullmatch(text) else None), PLAIN


def _grouped(text: str) -> Fraction | None:
    """Read ``1,000,000`` or ``1.000,5``; ``1,000`` and ``1.000`` may be one as well as thousand."""
    found = _GROUPED.fullmatch(text)
    assert found is not None
    mark, rest = found["mark"], found["rest"] or ""
    if rest.startswith(mark) or (mark in ",." and not rest and text.count(mark) == 1):
        return None
    whole = text[: len(text) - len(rest)].replace(mark, "")
    return _fraction(whole + rest.replace(",", "."))


def _either(text: str) -> str:
    digits = text.replace(",", ".")
    return f"{POINT}: write {digits.replace('.', '')} or {digits}"


def _fraction(text: str) -> Fraction | None:
    exponent = int(text.partition("e")[2] or 0)
    return Fraction(text) if abs(exponent) < 400 else None  # 1e999999999 would take all memory
