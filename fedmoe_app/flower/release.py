"""The installed release of Flower, and whether fedmoe was tried with it."""

from __future__ import annotations

import re
from importlib import metadata

DEFAULT = (1, 39)  # what `pip install` of fedmoe brings
TRIED = (DEFAULT, (1, 42))  # make deployment, and make newest-flower
FIRST_HTTP = (1, 40)  # from here on SuperNodes talk HTTP to the SuperLink

_NUMBERS = re.compile(r"(\d+)\.(\d+)")


class UnsupportedFlowerError(RuntimeError):
    """The installed release of Flower lacks what is needed; the message says what."""


def installed_version() -> str:
    """Return the version of the installed package ``flwr``, such as ``1.39.0``.

    Raises:
        UnsupportedFlowerError: there is none.
    """
    try:
        return metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise UnsupportedFlowerError(
            f"flwr is not installed here; pip install 'flwr[simulation]=={_text(DEFAULT)}.*'"
        ) from None


def release_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; a development version counts as its release.

    Raises:
        UnsupportedFlowerError: it does not begin with two numbers.
    """
    found = _NUMBERS.match(version)
    if found is None:
        raise UnsupportedFlowerError(f"flwr {version}: not a version like 1.39.0")
    return int(found[1]), int(found[2])


def speaks_http(version: str | None = None) -> bool:
    """Tell whether this release's SuperNodes talk HTTP to the SuperLink; before, it was gRPC.

    Args:
        version: of Flower; None: the installed one.
    """
    return release_of(version or installed_version()) >= FIRST_HTTP


def is_tried(version: str) -> bool:
    """Tell whether fedmoe was tried with this release of Flower."""
    return release_of(version) in TRIED


def caution(version: str | None = None) -> str:
    """Return what to tell a user of a release that fedmoe was not tried with; "" of the others.

    Args:
        version: of Flower; None: the installed one.

    Raises:
        UnsupportedFlowerError: the release is older than the oldest that works, or none at all.
    """
    version = version or installed_version()
    tried = " and ".join(_text(known) for known in TRIED)
    if release_of(version) < DEFAULT:
        raise UnsupportedFlowerError(
            f"flwr {version} is too old for fedmoe, which was tried with {tried}; "
            f"pip install 'flwr[simulation]=={_text(DEFAULT)}.*'"
        )
    if is_tried(version):
        return ""
    return (
        f"flwr {version}: fedmoe was tried with {tried} (docs/reference/flower.md); if something "
        f"fails, pip install 'flwr[simulation]=={_text(DEFAULT)}.*'"
    )


def _text(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
