"""Faults of a scheme's own parts: what came of calling one, with the part and its method named.

A part is somebody's code. What goes wrong in it, or comes back from it and cannot be used, costs
the round and not the run; whoever reads the reason has to see which class it was. A fault of the
engine around the parts is none of these and is raised as it is.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor


class PartError(ValueError):
    """A part of a scheme raised, or returned what cannot be used; the message is the reason."""

    @classmethod
    def of(cls, part: object, method: str, what: str) -> PartError:
        """Make one that begins with ``Class.method:``."""
        return cls(f"{type(part).__name__}.{method}: {what}")


def call(part: object, method: str, *given: Any) -> Any:
    """Call a method of a part.

    Raises:
        PartError: it raised; the message names error, file and line. A lack of memory is no fault
            of the part and is raised as it is.
    """
    try:
        return getattr(part, method)(*given)
    except (PartError, MemoryError):
        raise
    except Exception as error:  # whatever a user's part does
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise PartError.of(part, method, f"raised {said}{_line(error, part)}") from error


def shown(value: object) -> str:
    """Describe what came back, shortly."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, {value.dtype}"
    if value is None:
        return "None"
    if isinstance(value, Real):
        return repr(value)
    return f"a {type(value).__name__}"


def vector(part: object, method: str, found: object, length: int, of: str) -> Tensor:
    """Return what must be a vector of ``length`` floating-point numbers.

    Raises:
        PartError: it is something else; ``of`` says what the numbers belong to.
    """
    is_vector = isinstance(found, Tensor) and found.is_floating_point()
    if not isinstance(found, Tensor) or not is_vector or tuple(found.shape) != (length,):
        raise PartError.of(
            part,
            method,
            f"returned {shown(found)}: must be floating-point of shape [{length}], {of}",
        )
    return found


def named(part: object, method: str, what: str, found: object) -> Mapping[str, Tensor]:
    """Return what must be tensors by name.

    Args:
        part, method: where it came from.
        what: which part of the return value it is; "" is all of it.
        found: it.

    Raises:
        PartError: it is something else.
    """
    if not isinstance(found, Mapping):
        came = f"{what} is {shown(found)}" if what else f"returned {shown(found)}"
        raise PartError.of(part, method, f"{came}: must be a dict of tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            came = f"{what or 'it'} holds {shown(value)} under {name!r}"
            raise PartError.of(part, method, f"{came}: must be tensors by name")
    return found


def share(part: object, method: str, found: Any, whose: str) -> Any:
    """Return what must be a finite number ≥ 0, as it is.

    Raises:
        PartError: it is something else; ``whose`` names the client and the block.
    """
    try:
        is_share = math.isfinite(found) and found >= 0
    except (TypeError, ValueError, RuntimeError):  # no number; a tensor of several
        is_share = False
    if not is_share:
        number = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        raise PartError.of(
            part, method, f"returned {shown(number)} for {whose}: must be a finite number ≥ 0"
        )
    return found


def _line(error: Exception, part: object) -> str:
    """Return the last place in the part's own module that the error came through, or ""."""
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == type(part).__module__
    ]
    if not own:
        return ""
    file, line = own[-1]
    return f" ({file.replace(chr(92), '/').rsplit('/', 1)[-1]}, line {line})"
