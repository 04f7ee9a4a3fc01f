"""A word to the user, once a process, if fedmoe was not tried with the installed Flower."""

from __future__ import annotations

import sys
from functools import cache

from fedmoe_app.flower.release import UnsupportedFlowerError, caution
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.shown.terminal import say


@cache
def check_release() -> None:
    """Warn of a release of Flower that fedmoe was not tried with.

    Raises:
        LaunchError: it is too old.
    """
    try:
        said = caution()
    except UnsupportedFlowerError as error:
        raise LaunchError(str(error)) from None
    if said:
        say(f"warning: {said}", file=sys.stderr)
