"""Characters that act instead of being seen, written as escapes; names that can be told apart.

Needs the standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

ELLIPSIS = "…"

# Kept, although its last part cannot be seen: the flag of England is a black flag with tags.
_FLAG = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
# Controls of C0 and C1, which terminals obey; bidi controls and separators, which turn the text
# around them or end its line; byte order marks; interlinear marks; tags; what is no character.
_ACTS = (
    "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f"
)
_ACTING = re.compile(f"{_FLAG}|[{_ACTS}]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Neither ink nor room: joiners, soft hyphens, fillers.
_UNSEEN = re.compile("[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2064"
                     "\u2800\u3164\ufe00-\ufe0f\uffa0]")  # fmt: skip
_JOINER = "\u200d"


def escape(character: str) -> str:
    r"""Return one character as Python writes its escape: ``\n``, ``\x1b``, ``\u202e``."""
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: object, limit: int | None = None) -> str:
    """Return ``text`` as one line in which every character can be seen, or is harmless unseen.

    Args:
        text: its ``str()`` is taken.
        limit: characters at most, see :func:`shorten`.
    """
    shown = _ACTING.sub(lambda match: _escaped(match[0]), str(text))
    return shown if limit is None else shorten(shown, limit)


def visible_lines(text: object) -> str:
    """Return the same of a text whose line ends are meant, as those of this app's own are."""
    return "\n".join(visible(line) for line in str(text).replace("\r\n", "\n").split("\n"))


def without_colours(line: str) -> str:
    """Return a line of another program without the codes of its colours, tabs as spaces."""
    return _COLOUR.sub("", line).expandtabs()


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a text of more than ``limit`` characters: its end may tell it apart.

    Letters stay together with their accents, joined emoji are not parted.
    """
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    head = limit - 1 - tail
    while head > 0 and not _can_part(text, head):
        head -= 1
    start = len(text) - tail
    while start < len(text) and not _can_part(text, start):
        start += 1
    return f"{text[:head]}{ELLIPSIS}{text[start:]}"


def readable(value: object, form: Callable[[str], str] = visible) -> str:
    r"""Return a name so that its ends can be seen: ``" cat"``, ``""``, ``"\xa0"``.

    Args:
        value: a label, a name of a column, file, run or scheme.
        form: what makes its characters fit for the place.
    """
    text = str(value)
    if _UNSEEN.sub("", text).strip() and text == text.strip():
        return form(text)
    return f'"{form(_spelled(text))}"'


def tell_apart(
    values: Sequence[object], limit: int, form: Callable[[str], str] = visible
) -> list[str]:
    r"""Return names of at most about ``limit`` characters that can be told apart.

    Of names that look the same, all but the plain one are spelled: ``e\u0301`` beside ``é``. What
    is still the same after it was cut is numbered.

    Args:
        values: the names; what is equal here stays equal.
        limit: characters at most, but for the number.
        form: as in :func:`readable`.
    """
    shown = {value: readable(value, form) for value in dict.fromkeys(map(str, values))}
    alike = Counter(map(_look, shown.values()))
    for value, text in shown.items():
        if alike[_look(text)] > 1 and _look(value) != value:
            shown[value] = form(_spelled(value, ascii_only=True))
    numbered = _numbered({value: shorten(text, limit) for value, text in shown.items()})
    return [numbered[str(value)] for value in values]


def _numbered(shown: dict[str, str]) -> dict[str, str]:
    """Number the texts that look the same, with numbers that make no other text."""
    looks = Counter(map(_look, shown.values()))
    taken = set(looks)
    numbered = dict(shown)
    for value, text in shown.items():
        if looks[_look(text)] > 1:
            forms = (f"{text} #{number}" for number in count(1))
            numbered[value] = next(form for form in forms if _look(form) not in taken)
            taken.add(_look(numbered[value]))
    return numbered


def _escaped(found: str) -> str:
    return escape(found) if len(found) == 1 else found  # a flag


def _spelled(text: str, ascii_only: bool = False) -> str:
    """Escape what cannot be seen in ``text``, spaces but the plain one included."""
    return "".join(
        escape(c) if (ascii_only and not c.isascii()) or _is_unseen(c) else c for c in text
    )


def _is_unseen(character: str) -> bool:
    space = character.isspace() and character != " "
    return space or bool(_UNSEEN.match(character) or _ACTING.match(character))


def _look(text: str) -> str:
    """Return what two texts have in common that look the same."""
    return " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", text)).split())


def _can_part(text: str, index: int) -> bool:
    """Tell whether a reader sees the characters on both sides of ``index`` as two."""
    after, before = text[index], text[index - 1]
    joined = _JOINER in (after, before) or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
    return not joined and not unicodedata.category(after).startswith("M")
