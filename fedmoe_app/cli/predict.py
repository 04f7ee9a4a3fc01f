"""``fedmoe predict``: where texts come from, and how their classes are written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from torch import Tensor

from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.files import FORMATS, Dialect, read_columns
from fedmoe_app.data.reading.columns import Asked
from fedmoe_app.results.table import MISSING
from fedmoe_app.shown.logs import json_line
from fedmoe_app.shown.terminal import Table

MAX_TEXT = 60  # characters of a text in the table
STDIN = "-"


def texts_of(given: Sequence[str], file: Path | None, data: DataConfig) -> list[str]:
    """Return the texts to classify: those of the command line, of a file, or of the input.

    Args:
        given: on the command line; one ``-``, or nothing at all, means a text a line of the input.
        file: a data file with the column ``data.text-field``, or one text a line.
        data: of the run: names the column, encoding and delimiter.

    Raises:
        ConfigError: both, or no text.
        DataError: the file cannot be read.
    """
    if given and file:
        raise ConfigError("give texts or --file, not both")
    if file is not None:
        texts = _of_file(file, data)
    elif list(given) in ([], [STDIN]):
        if sys.stdin.isatty():
            raise ConfigError(
                'no text: give some ("the text"), --file FILE, or pipe one a line into it'
            )
        texts = _lines(sys.stdin.read())
    else:
        texts = list(given)
    if not texts:
        raise ConfigError("no text: the input is empty")
    return texts


def _of_file(file: Path, data: DataConfig) -> list[str]:
    if not file.is_file():
        raise ConfigError(f"--file {file}: there is no such file")
    if file.name.lower().removesuffix(".gz").endswith(tuple(FORMATS)):
        asked = Asked(scalars=(data.text_field,))
        found = read_columns(str(file), asked, Dialect(data.encoding, data.delimiter), False)
        if data.text_field not in found.dataset.column_names:
            raise DataError(
                f'{file}: no column "{data.text_field}" (data.text-field of the run); there are '
                f"{', '.join(found.names)}"
            )
        return [text or "" for text in found.dataset[data.text_field]]
    try:
        return _lines(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{file}: not text in UTF-8; other files: {', '.join(FORMATS)}") from None


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def as_table(texts: Sequence[str], names: Sequence[str], found: Tensor, top: int) -> Table:
    """Return a table with the most likely classes of each text; ``found`` is ``[N, C]``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("text", "class", "probability", "then"):
        table.add_column(header, justify="right" if header == "probability" else "left")
    for text, row in zip(texts, found, strict=True):
        short = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
        if row.isnan().any():
            table.add_row(short, MISSING, MISSING, "")
            continue
        best = _best(names, row, top)
        rest = ", ".join(f"{name} {share:.3f}" for name, share in best[1:])
        table.add_row(short, best[0][0], f"{best[0][1]:.3f}", rest)
    return table


def as_json(texts: Sequence[str], names: Sequence[str], found: Tensor) -> Iterator[str]:
    """Yield a JSON object a text: ``text``, ``label``, ``probabilities`` of all classes.

    Label and probabilities of a text without class are null.
    """
    for text, row in zip(texts, found, strict=True):
        if row.isnan().any():
            yield json_line({"text": text, "label": None, "probabilities": None})
            continue
        best = _best(names, row, len(names))
        shares = {name: round(share, 6) for name, share in best}
        yield json_line({"text": text, "label": best[0][0], "probabilities": shares})


def _best(names: Sequence[str], row: Tensor, top: int) -> list[tuple[str, float]]:
    order = row.argsort(descending=True, stable=True)[:top].tolist()
    return [(names[index], float(row[index])) for index in order]
