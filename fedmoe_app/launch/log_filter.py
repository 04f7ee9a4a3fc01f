"""Flower's log stream made readable: what it says about itself and Ray is left out."""

from __future__ import annotations

import re

from fedmoe_app.flower.words import CLIENT_DUMP, NOISE, SERVER_DUMP

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ACTOR = re.compile(r"^\(\w+ pid=\d+(, ip=[\d.]+)?\) ")
_LEVEL = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*: {0,8}")
# Our own lines begin with the time (results/events.py).
_OWN = re.compile(r"^\d\d:\d\d:\d\d ")
# A dump for a client that raised is left out: the app's own line "client 3 failed: ..." says it.
_TRACEBACK = "Traceback (most recent call last):"
# Of a data file: each client that reads the same file says the same.
_OF_THE_DATA = re.compile(r"\bdropped \d+ of \d+ \w+")
# Our own line with the reason; what follows says it again, in the words of an exception.
_GAVE_UP = re.compile(r"^\d\d:\d\d:\d\d failed after round ")
_AGAIN = (*SERVER_DUMP, "fedmoe_app.server.rounds.RunFailedError")
_LABELS = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}

_NOISE = (*NOISE, "warnings.warn(")
_NOISE_INSIDE = (
    ": FutureWarning: ",
    ": DeprecationWarning: ",
    "Started a local Ray instance",
    # bitsandbytes looks for an optional package
    "gemm_4bit_forward from kernels-community",
)


class LogFilter:
    """Turn raw lines into readable ones, one by one.

    Levels become ``warning:`` and ``error:``, a traceback shrinks to its last line, the name of
    the process that printed a line goes, and so do empty lines and what is dumped when a client
    raises. What is said of a data file stands there once, however many clients read it, and so does
    why a run gave up.
    """

    def __init__(self) -> None:
        """Start outside a traceback."""
        self._in_traceback = False
        self._in_dump = False
        self._gave_up = False
        self._said: set[str] = set()

    def __call__(self, raw: str) -> str | None:
        """Return the readable line, or None when it says nothing about the run."""
        line = _ACTOR.sub("", COLOUR.sub("", raw)).rstrip()
        if self._is_dump(line):
            return None
        if line.lstrip().startswith(_TRACEBACK):
            self._in_traceback = True
            return None
        if self._in_traceback and (not line or line[0].isspace()):
            return None
        self._in_traceback = False
        found = _readable(line)
        return None if found and self._is_repeated(found) else found

    def _is_repeated(self, line: str) -> bool:
        self._gave_up = self._gave_up or _GAVE_UP.match(line) is not None
        if self._gave_up and line.removeprefix(_LABELS["ERROR"]).startswith(_AGAIN):
            return True
        if not _OF_THE_DATA.search(line):
            return False
        repeated = line in self._said
        self._said.add(line)
        return repeated

    def _is_dump(self, line: str) -> bool:
        """Tell whether a line belongs to what is dumped for a client's exception."""
        level = _LEVEL.match(line)
        if level and line[level.end() :].startswith(CLIENT_DUMP):
            self._in_dump = True
        elif _OWN.match(line):
            self._in_dump = False
        return self._in_dump


def _readable(line: str) -> str | None:
    level = _LEVEL.match(line)
    message = line[level.end() :] if level else line
    bare = message.lstrip("\t ⚠\ufe0f")
    if not bare or bare.startswith(_NOISE) or any(text in bare for text in _NOISE_INSIDE):
        return None
    return (_LABELS.get(level[1], "") if level else "") + message
