"""Texts that some place or other takes for orders, and ordinary ones that must stay as they are."""

from __future__ import annotations

import re

HOSTILE = (
    "[/closed]",
    "[bold]open",
    ":smile: [link=file:///x]y[/link]",
    "$0-$50",
    "$a_{$",
    "100% & \\frac #",
    "red\x1b[31m\x1b]0;title\x07",
    "back\x08\rstart\x0b\x7f",
    "one\ntwo\tthree",
    "\x9b2J c1",
    "\u202egnp.exe\u2066",
    "end\u2028of\u2029line",
    "left\u200eright\u200f",
    "=1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "</script><b>x</b>\"'",
    "{{ 7 * 7 }} {% raw",
    "`tick` *star* _under_ | bar",
    "_hidden",
)
ORDINARY = (
    "plain",
    "Berlin [Mitte]",
    "$5-$9 & up_",
    "العربية",
    "שלום עולם",
    "中文标签",
    "हिन्दी क्षत्रिय",
    "می‌خواهم",  # with a zero-width non-joiner
    "ภาษา\u200bไทย",  # with a zero-width space between words
    "e\u0301te\u0301",
    "👩\u200d👩\u200d👧 family",
    "👍🏽 ok",
    "❤️",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f England",
    "10\u00a0000\u202f€",
    "-0.5",
)
# What no place may show as it is. Line ends and tabs of the app's own are looked at apart.
ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
