"""Out of memory on a client: said in one sentence, and nothing kept from the next message.

A failed allocation is an error like others in Python, but its traceback holds every frame of the
round and so every tensor of it: a process that serves several clients would have no room for the
next one. What a client was doing is noted on the error on its way up (:func:`doing`); at the top it
is told by :func:`explain` and let go by :func:`release`.

A process that the operating system kills gets no chance to say anything.
"""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LOADING, SCORING, TRAINING = "loading the model", "scoring", "training"

_ROUND = "round "

# What PyTorch (CPU, CUDA, cuBLAS), bitsandbytes, safetensors and C++ say.
_SHORT_OF_MEMORY = re.compile(
    r"out of memory|can(?:'|no)t allocate memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc"
    r"|unable to allocate",
    re.IGNORECASE,
)
_BYTES = re.compile(r"tried to allocate (\d+) bytes")
_SIZE = re.compile(r"(?:tried to|unable to) allocate (\d[\d.]* [KMGTPE]?i?B)", re.IGNORECASE)
_FEWER = "run fewer clients at once (fedmoe run --gpus or --cpus)"
_ADVICE = {
    LOADING: f'choose model.quantization = "nf4", or {_FEWER}',
    SCORING: f"lower train.per-device-eval-batch-size or data.max-length, or {_FEWER}",
    TRAINING: (
        "lower train.per-device-train-batch-size and raise train.gradient-accumulation-steps, set "
        f"train.gradient-checkpointing, lower data.max-length, or {_FEWER}"
    ),
}


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note on any error inside what the client was doing.

    Args:
        what: LOADING, SCORING, TRAINING, or the round, by :func:`round_note`.
    """
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def round_note(server_round: int) -> str:
    """Return the note that tells the round."""
    return f"{_ROUND}{server_round}"


def explain(error: BaseException) -> str | None:
    """Return what to tell of an error that a lack of memory caused; None for any other."""
    if not is_out_of_memory(error):
        return None
    notes = getattr(error, "__notes__", ())
    what = next((note for note in notes if note in _ADVICE), None)
    server_round = next((f" in {note}" for note in notes if note.startswith(_ROUND)), "")
    while_doing = f" while {what}" if what else ""
    advice = _ADVICE[what or TRAINING]
    return f"out of memory{server_round}{while_doing}{_needed(error)}; {advice}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that of a failed allocation, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_SHORT_OF_MEMORY.search(str(error)))


def release(error: BaseException) -> None:
    """Let go of everything that the frames of an error hold; keep the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()  # modules and their hooks hold one another
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _needed(error: BaseException) -> str:
    """Return ", 3.6 GiB more needed", or nothing if the error does not say how much."""
    text = str(error)
    if found := _BYTES.search(text):
        return f", {int(found[1]) / 2**30:.3g} GiB more needed"
    if found := _SIZE.search(text):
        return f", {found[1]} more needed"
    return ""
