"""Names in TensorBoard, Weights & Biases and MLflow, which refuse or replace some characters."""

from __future__ import annotations

import re

from fedmoe_app.shown.text import visible

MAX_TITLE = 128  # characters; Weights & Biases refuses longer names of runs
MAX_VALUE = 6000  # characters; MLflow refuses longer parameters

# What all three take. Letters of any script belong to it.
_OTHER = re.compile(r"[^\w./-]")


def tag(name: str) -> str:
    """Return the name of a series of numbers; a character that one of them refuses is its code."""
    return _OTHER.sub(lambda match: f"_{ord(match[0]):x}_", name)


def title(name: str) -> str:
    """Return the name of a run."""
    return visible(name, MAX_TITLE)


def setting(text: object) -> str:
    """Return a setting of a run."""
    return visible(text, MAX_VALUE)
