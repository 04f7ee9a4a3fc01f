"""Small text files that people write by hand: a run config, a list of class names.

Editors of some systems save them as UTF-16 or with a byte-order mark; both say so in their first
bytes and are read. Anything else must be UTF-8.
"""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

# UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class EncodingError(ValueError):
    """A file that is not in the encoding that it should be in; the message says how to convert."""


def read_text(path: Path) -> str:
    """Return a file's text without its byte-order mark.

    Raises:
        OSError: it cannot be read.
        EncodingError: naming the byte, its offset and line, and a command that converts the file.
    """
    return decode(path.read_bytes(), path)


def decode(raw: bytes, path: Path) -> str:
    """Return ``raw``, the bytes of the file ``path``, as text; as :func:`read_text`."""
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in raw:
        raise EncodingError(_without_mark(raw, path))
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise EncodingError(_wrong_byte(raw, error, path)) from None


def _wrong_byte(raw: bytes, error: UnicodeDecodeError, path: Path) -> str:
    name = error.encoding.upper()
    line = raw[: error.start].count(b"\n") + 1
    found = f"byte 0x{raw[error.start]:02x} at offset {error.start} (line {line}) is not {name}"
    if not name.startswith("UTF-8"):
        return f"{found}, as its first bytes say; save the file again as UTF-8"
    return f"{found}; if it is Windows-1252, convert it: {_convert('WINDOWS-1252', path)}"


def _without_mark(raw: bytes, path: Path) -> str:
    """Say that there are NUL bytes: of ASCII in UTF-16, every other byte is one."""
    offset = raw.index(b"\0")
    encoding = "UTF-16BE" if offset % 2 == 0 else "UTF-16LE"
    return (
        f"a NUL byte at offset {offset} (line 1): not UTF-8; if it is {encoding} without a "
        f"byte-order mark, convert it: {_convert(encoding, path)}"
    )


def _convert(encoding: str, path: Path) -> str:
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(target))}"
