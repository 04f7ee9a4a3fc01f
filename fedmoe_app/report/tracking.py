"""The optional TensorBoard writer: the figures of ``metrics.jsonl`` as curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedmoe_app.config import ConfigError

FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Refuse to promise curves that cannot be written.

    Raises:
        ConfigError: if the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard = true: the package tensorboard is not installed; "
            "pip install 'fedmoe[tracking]', or set tensorboard = false"
        )


class Curves:
    """Writes a round's figures as scalars, the round as the step.

    Args:
        results: the result folder of the run.
        first_round: of this part of the run; what an earlier part wrote of it and of later
            rounds is hidden.
    """

    def __init__(self, results: Path, first_round: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Typed in neither torch nor here: the package is optional.
        self._writer: Any = SummaryWriter(str(results / FOLDER), purge_step=first_round)

    def add(self, line: Mapping[str, Any]) -> None:
        """Write the figures of a line of ``metrics.jsonl``."""
        for name, value in _scalars(line):
            self._writer.add_scalar(name, value, line["round"])
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key in ("loss", "accuracy", "train_loss", "bytes_up", "bytes_down", "num_clients"):
        if line[key] is not None:
            yield f"global/{key}", line[key]
    yield "global/failures", len(line["failures"])
    for phase, seconds in line["seconds"].items():
        if isinstance(seconds, int | float):
            yield f"seconds/{phase}", seconds
    for client in line["clients"]:
        for key in ("train_loss", "accuracy", "local_accuracy", "personal_accuracy"):
            if client.get(key) is not None:
                yield f"clients/{key}/{client['client']}", client[key]
