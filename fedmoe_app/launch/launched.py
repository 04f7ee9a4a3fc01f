"""How a run was started, kept in its result folder for ``fedmoe resume``: ``launch.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmoe_app.config.files import write_atomic
from fedmoe_app.results.folder import LAUNCH_FILE


@dataclass(frozen=True)
class Launch:
    """What a command line said beside the run config.

    Attributes:
        app: folder of the Flower app, absolute.
        connection: of the SuperLink; "" for simulated nodes.
        clients: simulated nodes; 0 on a connection.
        gpus: share of a GPU, or whole GPUs, of a simulated node.
        cpus: CPUs of a simulated node; None for ``train.threads``.
        online: whether downloads from the model hub were allowed.
    """

    app: str
    connection: str = ""
    clients: int = 0
    gpus: float = 0.0
    cpus: int | None = None
    online: bool = False


def write_launch(folder: Path, launch: Launch) -> None:
    """Note how the run of a result folder was started."""
    write_atomic(folder / LAUNCH_FILE, json.dumps(asdict(launch), indent=1))


def read_launch(folder: Path) -> Launch | None:
    """Return how the run of a result folder was started; None where ``fedmoe`` did not do it."""
    try:
        return Launch(**json.loads((folder / LAUNCH_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
