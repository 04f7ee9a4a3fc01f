"""Lists in one value of the run config."""

from __future__ import annotations

from pathlib import Path


def file_names(value: str) -> tuple[str, ...]:
    """Return the files that a value names: itself if there is such a file, else split at commas."""
    if Path(value).expanduser().is_file():
        return (value,)
    return tuple(part.strip() for part in value.split(",") if part.strip())
