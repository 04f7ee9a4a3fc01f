"""Pictures: Vega-Lite specs become files, and all text in them can be seen.

The specs are drawn in a process of its own, see :mod:`vega`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedmoe_app.shown.text import shorten, tell_apart, visible

KINDS = ("png", "svg", "pdf")
_PROGRAM = Path(__file__).with_name("vega.py")
PATIENCE = 600  # seconds


class DrawingError(RuntimeError):
    """A picture could not be drawn."""


def check_installed() -> None:
    """Raise ModuleNotFoundError without vl-convert; nothing is drawn in this process."""
    import vl_convert  # noqa: F401


def picture(text: object, limit: int | None = None) -> str:
    """Return text for a title, a label or a tick of a picture.

    Args:
        text: its ``str()`` is taken.
        limit: characters at most.
    """
    shown = visible(str(text))
    return shown if limit is None else shorten(shown, limit)


def picture_names(values: Sequence[object], limit: int) -> list[str]:
    """Return names for the ticks of an axis, which can be told apart (:func:`text.tell_apart`)."""
    return tell_apart(values, limit)


def save(specs: Mapping[Path, Mapping[str, Any]], points: float | None = None) -> list[Path]:
    """Write pictures, each whole or not at all, and return their paths.

    Args:
        specs: a Vega-Lite spec for each file, whose kind is the ending: one of ``KINDS``. Text that
            did not go through :func:`picture` acts on nothing, either.
        points: the width that each picture is scaled to, 72 an inch (PNG: 300 pixels an inch);
            None leaves it.

    Raises:
        DrawingError: when a spec cannot be drawn; ModuleNotFoundError without vl-convert.
    """
    with TemporaryDirectory(prefix="fedmoe-pictures-") as folder:
        files = [
            {"spec": _visible(spec), "path": f"{folder}/{number}", "kind": path.suffix[1:]}
            for number, (path, spec) in enumerate(specs.items())
        ]
        _run({"files": files, "points": points})
        for number, path in enumerate(specs):
            temporary = path.with_name(f".{path.name}")
            temporary.write_bytes(Path(folder, str(number)).read_bytes())
            os.replace(temporary, path)
    return list(specs)


def write_bundle(path: Path) -> None:
    """Write the JavaScript of Vega, Vega-Lite and Vega-Embed for a page.

    Raises:
        DrawingError: when it cannot be made; ModuleNotFoundError without vl-convert.
    """
    _run({"bundle": str(path)})


def _run(job: Mapping[str, Any]) -> None:
    check_installed()
    try:
        # -P: the folder of the program is not searched for modules.
        done = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM)],
            input=json.dumps(job),
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DrawingError(f"pictures cannot be drawn: {visible(error, 400)}") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise DrawingError(f"pictures cannot be drawn: {visible(last, 400)}")


def _visible(value: Any) -> Any:
    """Return a spec in which every text can be seen; the line ends of tooltips stay."""
    if isinstance(value, str):
        return "\n".join(map(visible, value.split("\n")))
    if isinstance(value, Mapping):
        return {key: _visible(item) for key, item in value.items()}
    return list(map(_visible, value)) if isinstance(value, list | tuple) else value
