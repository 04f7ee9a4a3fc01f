"""Open a text file as a stream of UTF-8 bytes, whatever its compression and encoding."""

from __future__ import annotations

import codecs
import gzip
import io
from pathlib import Path
from typing import IO

from fedmoe_app.config.errors import DataError

AUTO = "auto"
UTF_8 = "utf-8"

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_HEAD = 4096
MARKED = "fedmoe-marked"  # an error handler of codecs: half a character where bytes were none
_BLOCK = 1 << 20


def is_packed(path: Path) -> bool:
    """Tell whether a file is compressed by gzip, from its name."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked."""
    return gzip.open(path) if is_packed(path) else path.open("rb")  # type: ignore[return-value]


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put half a character, which no text has, in the place of bytes that are none."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(MARKED, _mark)


def open_utf8(path: Path, encoding: str = AUTO, lenient: bool = False) -> IO[bytes]:
    """Open a text file as UTF-8 without a byte order mark.

    Args:
        path: the file.
        encoding: Python's name of its encoding, or ``auto``: what the byte order mark says, UTF-8
            without one.
        lenient: bytes that are not in the encoding become some that are no UTF-8, so that they
            spoil the row that they are in and no other; and no guess by the first rows is made.

    Raises:
        DataError: with ``auto``, for UTF-16 without a byte order mark. Bytes that are no UTF-8 are
            not looked at here; see :func:`undecodable`.
    """
    name = _encoding_of(path, encoding, lenient)
    raw = open_bytes(path)
    if codecs.lookup(name).name == UTF_8:
        if raw.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            raw.seek(0)
        return raw
    return io.BufferedReader(_Recoded(raw, name, lenient), _BLOCK)  # type: ignore[type-var]


def undecodable(path: Path, encoding: str = AUTO) -> str | None:
    """Say where a file is not in its encoding; None if all of it is.

    The message names the place and the way out, and no byte of the file.
    """
    name = _encoding_of(path, encoding)
    decoder = codecs.getincrementaldecoder(name)()
    start = lines = 0
    with open_bytes(path) as file:
        while True:
            block = file.read(_BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                lines += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                good = bytes(error.object[: error.start]).decode(name, "ignore").count("\n")
                where = f"byte {start - pending + error.start}, line {lines + good + 1}"
                return f"{where}: not {_display_name(name)}; {_way_out(path, name)}"
            if not block:
                return None
            start += len(block)


def _encoding_of(path: Path, encoding: str, lenient: bool = False) -> str:
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if encoding != AUTO:
        _check_mark(path, encoding, marked)
        return encoding
    if marked is not None:
        return marked
    if head.startswith(_GZIP):
        raise DataError(f"{path}: is compressed by gzip; its name must end in .gz")
    # Text in UTF-8 has no zero bytes; Latin letters in UTF-16 have one each, all on one side.
    zeros = [head[side::2].count(0) for side in (0, 1)]
    if not lenient and max(zeros) * 5 > len(head) and min(zeros) * 4 < max(zeros):
        order = "le" if zeros[1] > zeros[0] else "be"
        raise DataError(
            f"{path}: looks like UTF-16 without a byte order mark; set data.encoding = "
            f'"utf-16-{order}", or convert it: iconv -f UTF-16{order.upper()} -t UTF-8'
        )
    return UTF_8


def _check_mark(path: Path, encoding: str, marked: str | None) -> None:
    """Refuse an encoding that the file's own byte order mark contradicts."""
    if marked is not None and not codecs.lookup(encoding).name.startswith(marked):
        raise DataError(
            f'{path}: data.encoding = "{encoding}", but its byte order mark is that of '
            f'{_display_name(marked)}; set data.encoding = "auto"'
        )


def _display_name(name: str) -> str:
    return codecs.lookup(name).name.upper()


def _way_out(path: Path, name: str) -> str:
    if codecs.lookup(name).name != UTF_8:
        return "data.encoding must name the encoding that the file is in"
    return (
        'files of Windows and Excel are often in cp1252: set data.encoding = "cp1252" (or the name '
        "of the right one, such as cp1251, gb18030 or shift_jis), or convert the file: "
        "iconv -f CP1252 -t UTF-8"
    )


class _Recoded(io.RawIOBase):
    """Bytes of a text file in another encoding, as UTF-8."""

    def __init__(self, raw: IO[bytes], encoding: str, lenient: bool = False) -> None:
        super().__init__()
        # newline="": line ends inside a quoted field are the file's own.
        errors = MARKED if lenient else "strict"
        self._text = io.TextIOWrapper(raw, encoding, errors, newline="")
        self._errors = "surrogatepass" if lenient else "strict"
        self._rest = b""
        self._begins = True

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill a buffer with the next bytes; 0 at the end."""
        if not self._rest:
            text = self._text.read(_BLOCK)
            # "utf-16-le" keeps the mark as a character.
            text = text.removeprefix("\ufeff") if self._begins else text
            self._rest = text.encode(UTF_8, self._errors)
            self._begins = False
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        """Close the file, too."""
        self._text.close()
        super().close()
