"""The result folder of a run: ``config.toml``, ``metrics.jsonl`` and ``samples.jsonl``.

``metrics.jsonl`` holds one JSON object a line, one line a round; round 0 is the initial model.
Everything about time stands under the key ``seconds``, so that two runs can be compared with
this key dropped.

Files have the modes that the process gives to new files (its umask). Those that hold text of the
test data, ``samples.jsonl`` and a ``report.html`` that shows samples, are for this user alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe_app.config.files import write_atomic
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.lease import LEASE_FILE, PATIENCE, Lease
from fedmoe_app.shown.logs import json_line, toml_text

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundRecord

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
CLASSES_FILE = "classes.jsonl"
CONFIG_FILE = "config.toml"
LAUNCH_FILE = "launch.json"  # written by fedmoe run
REPORT_FILE = "report.html"
CHECKPOINTS = "checkpoints"  # a folder, with a folder a round in it

# Words by which whoever resumes a run knows that its folder may be free a little later.
BEING_WRITTEN = "another process has been writing to it"
STILL_RUNNING = "the run there is still running"

# What every line of metrics.jsonl has, and tables and pages are made of.
LINE_KEYS = (
    *("round", "status", "loss", "accuracy", "num_clients", "bytes_up", "bytes_down"),
    *("clients", "failures", "seconds"),
)
_CHECKPOINT = re.compile(r"round-(\d{5,})")


class ResultsError(ValueError):
    """A result folder that cannot be written or read; the message says what to do."""


class RunFolder:
    """The folder that one run writes its results to.

    Raises:
        ResultsError: when ``path`` already holds something, or is a file.
    """

    def __init__(self, path: Path) -> None:
        """Create the folder ``path`` with its parents."""
        self.path = path.absolute()
        if self.path.exists() and not self.path.is_dir():
            raise ResultsError(f"results: {self.path} is a file; choose another run-name")
        if holds_files(self.path):
            raise ResultsError(
                f"results: {self.path} holds files of an earlier run; "
                "choose another run-name or output-dir, or delete it"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.lease: Lease | None = None

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Take the folder of a run that goes on, with what it holds."""
        folder = cls.__new__(cls)
        folder.path = path.absolute()
        folder.lease = None
        return folder

    def own(self, patience: float = PATIENCE) -> Lease:
        """Let no other process write to the folder from now on; see
        :mod:`fedmoe_app.results.lease`.

        Raises:
            ResultsError: if another one is in the middle of writing for more than ``patience``
                seconds.
        """
        lease = Lease(self.path)
        try:
            lease.take(patience)
        except TimeoutError:
            raise ResultsError(
                f"results: {self.path}: {BEING_WRITTEN} for {patience:g} s and does not go on (is "
                "it stopped?); end it and resume again"
            ) from None
        self.lease = lease
        return lease

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Change what the folder holds within this block only.

        Raises:
            TakenOverError: if another process goes on with this run.
        """
        if self.lease is None:
            yield
        else:
            with self.lease.held():
                yield

    def write_config(self, flat: Mapping[str, Any]) -> Path:
        """Write the flat run config as nested tables, as ``flwr run --run-config`` takes them."""
        with self.writing():
            return write_atomic(self.path / CONFIG_FILE, toml_text(nest(flat)))

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is on the disk when this returns.

        Numbers that JSON lacks (infinity, nan) become null; arrays and tensors become lists.
        """
        with self.writing():
            append_text(self.path / METRICS_FILE, _text([line]))

    def append_classes(self, line: Mapping[str, Any]) -> None:
        """Add one line to ``classes.jsonl`` (:mod:`fedmoe_app.results.classes`)."""
        with self.writing():
            append_text(self.path / CLASSES_FILE, _text([line]))

    def append_samples(self, server_round: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Add the samples of one evaluation to ``samples.jsonl``; nothing if there are none."""
        if samples:
            lines = [{"round": server_round, **sample} for sample in samples]
            with self.writing():
                append_text(self.path / SAMPLES_FILE, _text(lines), private=True)


class MetricsFile(Callback):
    """Writes a line of ``metrics.jsonl`` a round."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_round(self, record: RoundRecord) -> None:
        """Write the line of a round; it is on the disk when this returns."""
        self._folder.append(record.line)


def holds_files(folder: Path) -> bool:
    """Tell whether a folder holds anything of a run: its owner, and how it is started, are not."""
    nothing = (LEASE_FILE, LAUNCH_FILE)
    return folder.is_dir() and any(path.name not in nothing for path in folder.iterdir())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the metrics lines of a run, in the order written.

    Args:
        path: the result folder, or its ``metrics.jsonl``. A last line without a line end is
            one that is being written: it is left out.

    Raises:
        ResultsError: when there is no such file, or a line is not a JSON object.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(f"{file}: no such file; name the folder of a run, or wait for round 0")
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    numbered = enumerate(whole.split("\n"), start=1)
    return [_parse(text, file, number) for number, text in numbered if text.strip()]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Read the metrics lines as :func:`read_metrics`, and make sure that a run wrote them.

    Raises:
        ResultsError: also when a line lacks a key.
    """
    lines = read_metrics(path)
    for number, line in enumerate(lines, start=1):
        if missing := [key for key in LINE_KEYS if key not in line]:
            raise ResultsError(
                f"{path}: line {number} of {METRICS_FILE} lacks {', '.join(missing)}; the file is "
                "damaged, or not written by this release"
            )
    return lines


def list_checkpoints(results: Path) -> list[Path]:
    """Return the checkpoints of a result folder, the newest first; unfinished ones are none."""
    folder = results / CHECKPOINTS
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=round_of, reverse=True)


def round_of(path: Path) -> int:
    """Return the round in a checkpoint's folder name."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else -1


def results_of(path: Path) -> Path:
    """Return the result folder that a path given to ``resume`` belongs to."""
    path = path.absolute()
    return path.parent.parent if path.parent.name == CHECKPOINTS else path


def keep_rounds(path: Path, last_round: int) -> None:
    """Cut a file of lines with a ``round`` back to those up to ``last_round``.

    A line that was cut off by a crash goes, too. No file is no error.
    """
    if path.is_file():
        kept = _text([line for line in read_metrics(path) if line["round"] <= last_round])
        # A full disk must not be in the way where there is nothing to cut.
        if kept.encode() != path.read_bytes():
            write_atomic(path, kept, private=path.name == SAMPLES_FILE)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a.b": 1}`` as ``{"a": {"b": 1}}``, plain keys first as TOML wants them."""
    nested: dict[str, Any] = {}
    for key, value in sorted(flat.items(), key=lambda item: item[0].count(".")):
        *tables, leaf = key.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[leaf] = value
    return nested


def append_text(path: Path, text: str, private: bool = False, sync: bool = True) -> None:
    """Add whole lines to a file: all of them, or none where they do not fit on the disk.

    Args:
        path: the file; it is made if there is none.
        text: lines with their ends.
        private: a new file is for this user alone; else the umask decides.
        sync: wait until they are on the disk.

    Raises:
        OSError: if they could not be written; the file is as it was.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptor = os.open(path, flags, 0o600 if private else 0o666)
    try:
        before = os.fstat(descriptor).st_size
        try:
            _write_whole(descriptor, text.encode())
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write everything; where the disk is full a call writes a part, and the next one says why."""
    rest = memoryview(data)  # usually one call, so that a reader does not see half a line
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _text(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_dumps(line) + "\n" for line in lines)


def _parse(text: str, file: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultsError(f"{file}, line {number}: not JSON ({error})") from None
    if not isinstance(line, dict):
        raise ResultsError(f"{file}, line {number}: not a JSON object")
    return line


def _dumps(value: Any) -> str:
    return json_line(_plain(value))


def _plain(value: Any) -> Any:
    """Reduce mappings, sequences, arrays and tensors to what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    # numpy scalars and arrays, torch tensors
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
