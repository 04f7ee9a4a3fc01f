"""A client's encoded examples, kept on the node's disk between rounds.

Each round may find the node served by another process, which would read, partition and tokenise
the whole source again: on the embedded task that takes as long as training. So the encoded rows of
a partition are written once to ``$FEDMOE_HOME/cache``. A node's own file (``data-path``) is never
copied there: private text stays in the one place where its owner put it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash
from datasets import Dataset
from torch import Tensor

from fedmoe_app.config.files import build_once
from fedmoe_app.config.lists import file_names
from fedmoe_app.config.node import Node
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.config.schema import EMBEDDED, DataConfig, RunConfig
from fedmoe_app.data.alone import each_alone
from fedmoe_app.data.corpus import recipe_key
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.data.files import looks_like_file
from fedmoe_app.data.found import find_files
from fedmoe_app.data.language.templates import own_template
from fedmoe_app.data.reading.stored import map_file, write_batches
from fedmoe_app.data.tokenizer import tokenizer_key
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.schemes.faults import PartError, call, shown
from fedmoe_app.schemes.parts import Split
from fedmoe_app.tasks.base import Task
from fedmoe_app.tasks.setup import Setup, client_data
from fedmoe_app.wire.records import TrainTask

_log = logging.getLogger(__name__)

_NUM_CUT = b"num_cut"
_RECIPE_VERSION = 3  # raise it whenever the same config would be encoded or split differently


@dataclass(frozen=True)
class ClientRows:
    """Encoded examples of a client.

    Attributes:
        train: what is trained on.
        test: the hold-out; empty when the client has too few for one.
        apart: what sums over outputs are of in the place of ``train``; None is ``train``.
    """

    train: Encoded
    test: Encoded
    apart: Encoded | None = None

    @property
    def summed(self) -> Encoded:
        """What sums over outputs are of."""
        return self.train if self.apart is None else self.apart

    @property
    def num_examples(self) -> int:
        """Examples that are trained on or summed, which the client weighs in means."""
        return len(self.train) + len(self.apart or ())


def client_rows(config: RunConfig, node: Node, task: TrainTask, setup: Setup) -> ClientRows:
    """Return this node's encoded examples, from the cache where that is safe."""
    source, tokens = _source_key(config.data), _tokens_key(config, setup)
    if node.data_path is not None or source is None or tokens is None:
        return _encode(config, node, task, setup)
    inputs = [
        [_RECIPE_VERSION, tokens],
        config.model.name,  # an encoder-decoder model's rows are others
        config.data.model_dump(),
        own_template(config.data) if config.data.own_template else "",  # a file's may have changed
        [config.seed, node.partition_id, node.num_partitions],
        [task.label_names, task.data_fingerprint, source],
        *(["no hold-out"] if config.privacy.example_dp else []),
    ]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
    folder = build_once(
        cache_dir() / "rows" / key,
        lambda draft: _write(draft, _encode(config, node, task, setup)),
    )
    return _read(folder)


def divided(rows: ClientRows, part: Split | None, seed: int) -> ClientRows:
    """Divide what a client trains on, as a scheme's part says.

    Raises:
        PartError: what it returned is no such division.
    """
    if part is None:
        return rows
    labels = torch.tensor([int(row["labels"]) for row in rows.train])  # type: ignore[arg-type]
    found = call(part, "trained", labels, seed)
    is_mask = isinstance(found, Tensor) and found.dtype == torch.bool
    if not is_mask or found.shape != labels.shape or not found.any():
        raise PartError.of(
            part,
            "trained",
            f"returned {shown(found)} for {len(labels)} examples: must be bool of shape "
            f"[{len(labels)}], and true of at least one",
        )
    if found.all():
        return rows
    mask = found.numpy()
    return replace(rows, train=rows.train.keep(mask), apart=rows.train.keep(~mask))


def _tokens_key(config: RunConfig, setup: Setup) -> str | None:
    """Return what changes when the tokenizer does; None if that cannot be told."""
    if config.model.name in PRESETS:
        return tokenizer_key()
    backend = getattr(setup.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    kind = setup.model.config.is_encoder_decoder
    parts = [backend.to_str(), str(setup.tokenizer), str(setup.tokenizer.chat_template), kind]
    return xxhash.xxh3_128(json.dumps(parts).encode()).hexdigest()


def _source_key(data: DataConfig) -> str | None:
    """Return what changes when the source does; None if that cannot be told cheaply."""
    if data.source == EMBEDDED:
        return recipe_key()
    if data.source_kind == "auto" and not all(map(looks_like_file, file_names(data.source))):
        return None
    paths = [Path(name).expanduser() for name in find_files(data.source, data.source_kind).all]
    if not all(path.is_file() for path in paths):
        return None
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return str(stats)


def _encode(config: RunConfig, node: Node, task: TrainTask, setup: Setup) -> ClientRows:
    data = client_data(config, node, task.label_names, task.data_fingerprint)
    if config.privacy.example_dp:
        return ClientRows(_encoded_alone(setup.task, data.train), Encoded([], 0))
    train = setup.task.encode(data.train)
    return ClientRows(train, setup.task.encode(data.test) if data.test else Encoded([], 0))


def _encoded_alone(task: Task, dataset: Dataset) -> Encoded:
    """Encode the rows that can be, each by itself; there may be none."""
    task.described(dataset.column_names)  # raises what is wrong with the run
    if not len(dataset):
        return Encoded([], 0)
    try:
        return task.encode(dataset)
    except Exception as error:  # of whatever kind: each_alone tells a row's from the run's
        _log.debug("rows are encoded one by one (%s)", type(error).__name__)

    def encodable(start: int, stop: int) -> range:
        task.encode(dataset.select(range(start, stop)))
        return range(start, stop)

    good = [row for _, rows in each_alone(len(dataset), encodable, "encoding") for row in rows]
    return task.encode(dataset.select(good)) if good else Encoded([], 0)


def _write(folder: Path, rows: ClientRows) -> None:
    for name, part in {"train": rows.train, "test": rows.test}.items():
        table = part.table().replace_schema_metadata({_NUM_CUT: str(part.num_cut)})
        write_batches(folder / f"{name}.arrow", table.schema, [table])


def _read(folder: Path) -> ClientRows:
    tables = {name: map_file(folder / f"{name}.arrow") for name in ("train", "test")}
    cut = {name: int(table.schema.metadata[_NUM_CUT]) for name, table in tables.items()}
    return ClientRows(**{name: Encoded(table, cut[name]) for name, table in tables.items()})
