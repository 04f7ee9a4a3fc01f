"""A client's encoded examples, kept on the node's disk between rounds.

Each round may find the node served by another process, which would read, partition and tokenise
the whole source again: on the embedded task that takes as long as training. So the encoded rows of
a partition are written once to ``$FEDMOE_HOME/cache``. A node's own file (``data-path``) is never
copied there: private text stays in the one place where its owner put it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedmoe_app.config import EMBEDDED, RunConfig
from fedmoe_app.data.cache import build_once
from fedmoe_app.data.corpus import recipe_key
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.data.files import looks_like_file
from fedmoe_app.data.names import file_names
from fedmoe_app.data.tokenizer import tokenizer_key
from fedmoe_app.local.node import Node
from fedmoe_app.local.setup import Setup, client_data
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.paths import cache_dir
from fedmoe_app.wire.records import TrainTask

_FILE = "rows.json"
_RECIPE_VERSION = 1  # raise it whenever the same config would be encoded or split differently


@dataclass(frozen=True)
class ClientRows:
    """Encoded examples of a client; ``test`` is empty when it has too few for a hold-out."""

    train: Encoded
    test: Encoded


def client_rows(config: RunConfig, node: Node, task: TrainTask, setup: Setup) -> ClientRows:
    """Return this node's encoded examples, from the cache where that is safe."""
    source = _source_key(config)
    if node.data_path is not None or source is None or config.model.name not in PRESETS:
        return _encode(config, node, task, setup)
    inputs = [
        [_RECIPE_VERSION, tokenizer_key()],
        config.model.name,  # an encoder-decoder model's rows are others
        config.data.model_dump(),
        [config.seed, node.partition_id, node.num_partitions],
        [task.label_names, task.data_fingerprint, source],
    ]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
    folder = build_once(
        cache_dir() / "rows" / key,
        lambda draft: _write(draft / _FILE, _encode(config, node, task, setup)),
    )
    return _read(folder / _FILE)


def _source_key(config: RunConfig) -> str | None:
    """Return what changes when the source does; None if that cannot be told cheaply."""
    source = config.data.source
    if source == EMBEDDED:
        return recipe_key()
    paths = [Path(name) for name in file_names(source)]
    if not all(looks_like_file(str(path)) and path.is_file() for path in paths):
        return None
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return str(stats)


def _encode(config: RunConfig, node: Node, task: TrainTask, setup: Setup) -> ClientRows:
    data = client_data(config, node, task.label_names, task.data_fingerprint)
    train = setup.task.encode(data.train)
    return ClientRows(train, setup.task.encode(data.test) if data.test else Encoded([], 0))


def _write(path: Path, rows: ClientRows) -> None:
    parts = {name: [part, part.num_cut] for name, part in vars(rows).items()}
    path.write_text(json.dumps(parts), encoding="utf-8")


def _read(path: Path) -> ClientRows:
    parts = json.loads(path.read_text(encoding="utf-8"))
    return ClientRows(**{name: Encoded(*part) for name, part in parts.items()})
