"""What was meant by pairs that cannot be read: the rules that they break, and their values.

Only what is sure is guessed: the type of a value is that of its key. Whoever shows the result
makes sure that it can be read (:func:`fedmoe_app.config.pairs.to_type`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import NamedTuple

from fedmoe_app.config.pairs import Unreadable, Value, read_value
from fedmoe_app.config.parse import Key, almost_key, known_keys
from fedmoe_app.config.schema import keys_that_hold

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


# Keys that may hold a list of names; those with plain words only; those whose value may be a path.
LIST_KEYS = keys_that_hold("files", "names")
_WORD_KEYS = keys_that_hold("words")
PATH_KEYS = keys_that_hold("files", "path", "results")

SPACES = "pairs are separated by spaces, without commas"
EQUALS = "key and value are joined by = without spaces"
UNQUOTED = "strings stand in quotes"
QUOTED = "numbers and booleans stand without quotes"
CURLY = "quotation marks are the straight \" or '"
UNCLOSED = "a string has a quotation mark before and after it"
BACKSLASH = (
    "a backslash in \"...\" begins an escape, such as \\n for a new line; '...' takes it as it "
    "stands, and in a path / does, too"
)
AFTER = "a space and the next key=value follow after a string"
INSIDE = "a quotation mark inside of a string ends it, unless the marks around it are others"
NONE = 'nothing is the empty string ""'
LIST = 'a list is written as ["a", "b"]'

_DOUBLE, _SINGLE = '"“”„‟«»″', "'‘’‚‛`´′"
_KEY = re.compile(
    rf"(?P<lead>(?:^|(?<=[\s,;]))[\s,;]*)-*[{_DOUBLE}{_SINGLE}]?(?P<key>[A-Za-z][\w-]*(?:\.[\w-]+)*)"
    rf"[{_DOUBLE}{_SINGLE}]?(?P<equals>\s*(?:==|:=|=>|=|:)\s*)"
)
_ITEM = re.compile(
    rf"\s*(?:[{_DOUBLE}](.*?)[{_DOUBLE}]|[{_SINGLE}](.*?)[{_SINGLE}]|([^,]+))", re.DOTALL
)
# A bracket with a quotation mark after it, a pair of brackets with none inside, or several strings.
# A path such as [1].csv is none of them.
_LIKE_A_LIST = re.compile(
    rf"""[\[(]\s*[{_DOUBLE}{_SINGLE}].*|\[[^\[\]]*\]|("[^"]*"|'[^']*')(\s*[,\s]\s*("[^"]*"|'[^']*'))+""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Meant:
    """One pair: its key, its value (None where that is not sure) and the rules that it broke."""

    key: str
    value: Value | None
    rules: tuple[str, ...]


def understand(item: str, beside: Sequence[str] = ()) -> list[Meant]:
    """Return the pairs that an item of ``--run-config`` was meant to be; none if that is unclear.

    Args:
        item: as it came from the shell.
        beside: words that stood alone on the command line, where the item is a key without value.
    """
    starts = list(_starts(item))
    if not starts:
        return _without_equals(item, beside)
    if item[: starts[0].start()].strip(" ,;"):
        return []
    ends = [start.start() for start in starts[1:]] + [len(item)]
    return [
        _pair(start, item[start.end() : end], is_first=index == 0)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _starts(item: str) -> Iterator[re.Match[str]]:
    """Find where pairs begin: a key that is known or almost so, outside of strings."""
    position = 0
    while found := _KEY.search(item, position):
        if _known(found["key"]) is None:
            position = found.end("key")
            continue
        yield found
        position = _end_of_value(item, found.end())


def _known(word: str) -> str | None:
    return word if word in known_keys() else almost_key(word)


def _end_of_value(item: str, start: int) -> int:
    """Return where the string, list or JSON object ends that begins at ``start``, if one does."""
    first = item[start : start + 1]
    if first == "{":
        return max(item.rfind("}") + 1, start)
    if first == "[":
        return max(item.find("]", start) + 1, start)
    family = next((each for each in (_DOUBLE, _SINGLE) if first and first in each), "")
    for index in range(start + 1, len(item)):
        if item[index] in family and _ends_at(item, index + 1):
            return index + 1
    return start


def _ends_at(item: str, position: int) -> bool:
    """Tell whether a value can end here: the item does, or another pair follows."""
    if not item[position:].strip(" ,;"):
        return True
    following = _KEY.match(item, position) or _KEY.match(item, position + 1)
    return following is not None and bool(following["lead"]) and bool(_known(following["key"]))


def _without_equals(item: str, beside: Sequence[str]) -> list[Meant]:
    key, _, rest = item.strip().lstrip("-").partition(" ")
    raw = rest.strip() or " ".join(word for word in beside if word != "=").strip()
    known = _known(key.rstrip(":"))
    if known is None or not raw:
        return []
    value, rules = _value(known, raw)
    return [Meant(known, value, (EQUALS, *(rule for rule in rules if rule != UNQUOTED)))]


def _pair(start: re.Match[str], raw: str, is_first: bool) -> Meant:
    key = _known(start["key"]) or start["key"]
    rules = []
    if key != start["key"]:
        rules.append(f"the nearest key is {key}")
    if start["equals"] != "=":
        rules.append(EQUALS)
    bare = raw.rstrip().rstrip(",;").rstrip()
    if bare != raw.rstrip() or (not is_first and start["lead"].strip()):
        rules.append(SPACES)
    value, more = _value(key, bare)
    return Meant(key, value, (*rules, *more))


def _value(key: str, raw: str) -> tuple[Value | None, tuple[str, ...]]:
    """Return the value of a pair, of the type of its key, and the rules that ``raw`` breaks."""
    known = known_keys()[key]
    if (value := _as_it_stands(key, raw)) is not None:
        return value, ()
    if key in LIST_KEYS and (names := _list(raw)):
        return names, (LIST,)
    if (value := _no_list(key, raw)) is not None:
        return value, ()
    text, rules = _unquoted(raw)
    if known.kind is str:
        return _text(known, text, raw, rules)
    read = boolean(text) if known.kind is bool else number(text, known.kind)
    if read.value is None and re.search(r"[,;]\s", text):
        return None, (SPACES,)
    return read.value, (*rules, QUOTED if text != raw and not rules else read.rule)


def _as_it_stands(key: str, raw: str) -> Value | None:
    """Return the value if it is right, and not a path with a tab or line break by an escape."""
    try:
        value = read_value(key, raw)
    except Unreadable:
        return None
    return value if fits(key, value) and not (key in PATH_KEYS and has_control(value)) else None


def fits(key: str, value: Value) -> bool:
    """Tell whether a value is of the type of its key; an int is a float, too."""
    kind = known_keys()[key].kind
    if isinstance(value, list):
        return key in LIST_KEYS and all(isinstance(each, str) for each in value)
    return type(value) is kind or (kind is float and type(value) is int)


def has_control(value: Value) -> bool:
    """Tell whether a text, or one of a list, has a control character."""
    texts = value if isinstance(value, list) else [value]
    return any(char < " " for text in texts if isinstance(text, str) for char in text)


def _text(known: Key, text: str, raw: str, rules: list[str]) -> tuple[str | None, tuple[str, ...]]:
    if text != raw and not rules:
        rules.append(BACKSLASH if "\\" in text and raw[0] == '"' else INSIDE)
    if not _is_one_text(text, raw):
        return None, (AFTER,)
    if not text and not known.takes(""):
        return None, tuple(rules)
    if text == raw and text.lower() in ("none", "null", "nil") and known.takes(""):
        return "", (NONE,)
    if known.choices and text not in known.choices:
        close = get_close_matches(text.lower(), known.choices, 1, 0.8)
        rules = [*(rules or [UNQUOTED]), f"{text!r} is none of {', '.join(known.choices)}"]
        return (close[0] if close else None), tuple(rules)
    return text, tuple(rules or [UNQUOTED])


def _is_one_text(text: str, raw: str) -> bool:
    """Tell whether the quotation marks inside of a text are its own, and do not end it.

    They are where each stands inside of a word, as an apostrophe, or they come in pairs around
    words.
    """
    mark = raw[0] if text != raw and raw[:1] in ('"', "'") else ""
    if not mark:
        return True
    rest = re.sub(rf"(?<=\w){mark}(?=\w)", "", text) if mark == "'" else text
    return mark not in re.sub(
        rf"(?<![^\s(]){mark}[^\s{mark}]([^{mark}]*[^\s{mark}])?{mark}(?!\w)", "", rest
    )


def _unquoted(raw: str) -> tuple[str, list[str]]:
    """Return what stands between the quotation marks, with the rules that these break."""
    family = next((each for each in (_DOUBLE, _SINGLE) if raw[:1] and raw[0] in each), "")
    if not family:
        closes = raw[-1:] in ('"', "'") and raw.count(raw[-1]) == 1
        return (raw[:-1], [UNCLOSED]) if closes else (raw, [])
    if len(raw) < 2 or raw[-1] not in family:
        return raw[1:], [UNCLOSED]
    return raw[1:-1], [] if raw[0] == raw[-1] and raw[0] in "\"'" else [CURLY]


def _no_list(key: str, raw: str) -> Value | None:
    """Return what a list holds that stands for one value; None if ``raw`` is no such list."""
    try:
        values = read_value(key, raw)
    except Unreadable:
        return None
    if not isinstance(values, list):
        return None
    if key in _WORD_KEYS and all(isinstance(each, str) for each in values):
        return ", ".join(values)
    return values[0] if len(values) == 1 and fits(key, values[0]) else None


def _list(raw: str) -> list[str]:
    """Return the names of a list with wrong brackets or quotation marks; none if it is no list."""
    if not _LIKE_A_LIST.fullmatch(raw):
        return []
    inner = raw[1:].removesuffix("]").removesuffix(")") if raw[0] in "[(" else raw
    found = (next(filter(None, groups), "") for groups in _ITEM.findall(inner))
    return [name for each in found if (name := each.strip())]
