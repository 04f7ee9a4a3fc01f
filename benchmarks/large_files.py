"""A large JSON Lines and CSV file: read, split and encoded, beside ``datasets.load_dataset``.

    python -m benchmarks.large_files [--megabytes 1000] [--repetitions 3] [--clients 10]

Makes the files (40 words a row, ten classes, one column that nobody asks for). In every repetition
each step runs in a process of its own with empty caches: ``load_dataset`` and, beside it,
``load_text_data`` with the split over the clients; then the encoding of one client's part beside
``Dataset.map`` with the same tokenizer on the same rows; then the reading again, from the cache.
Prints medians of seconds, their ratio, and the largest anonymous memory above that after the
imports, for the whole file and for a quarter of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cells import print_markdown
from benchmarks.peaks import MIB, in_own_process, watch_memory

KINDS = {"jsonl": "json", "csv": "csv"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options.cell[0], Path(options.cell[1]), options.clients)))
        return
    with tempfile.TemporaryDirectory(prefix="large-files-") as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Make the files, run all cells and print the table."""
    table = []
    for megabytes in (options.megabytes // 4, options.megabytes):
        for ending in KINDS:
            file = folder / f"text-{megabytes}.{ending}"
            rows = make(file, megabytes * 10**6)
            found = repeated(file, options)
            table.append([f"{ending}, {megabytes} MB, {rows} rows", *columns(found)])
            file.unlink()
    print(f"{options.clients} clients, {options.repetitions} repetitions, medians")
    print_markdown(
        [
            "file",
            "load_dataset s",
            "read and split s",
            "ratio",
            "again s",
            "map one part s",
            "encode one part s",
            "ratio",
            "peak MiB, read and split",
            "peak MiB, encode",
        ],
        table,
    )


def make(file: Path, size: int) -> int:
    """Write rows until the file has ``size`` bytes; return how many."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    count = written = 0
    with file.open("w") as out:
        if file.suffix == ".csv":
            out.write("text,label,number\n")
        while written < size:
            row = {"text": " ".join(draw.choices(words, k=40)), "label": f"class {count % 10}"}
            row |= {"number": str(count)}
            line = ",".join(row.values()) if file.suffix == ".csv" else json.dumps(row)
            written += out.write(line + "\n")
            count += 1
    return count


def repeated(file: Path, options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """Run all cells in turn, several times."""
    found = []
    home = file.parent / "home"
    os.environ["FEDMOE_HOME"] = os.environ["HF_HOME"] = str(home)
    for _ in range(options.repetitions):
        for cache in (home / "cache" / "text", home / "datasets"):
            shutil.rmtree(cache, ignore_errors=True)  # the embedded corpus and tokenizer stay
        cells = {}
        for name in ("datasets", "read", "again", "map", "encode"):
            arguments = ["--clients", str(options.clients), "--cell", name, str(file)]
            cells[name] = in_own_process("benchmarks.large_files", arguments)
        found.append(cells)
    return found


def columns(found: list[dict[str, dict[str, float]]]) -> list[str]:
    """Return the table's columns: medians, and medians of the ratios of one repetition."""

    def median(value: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(value(cells) for cells in found)

    def seconds(name: str) -> float:
        return median(lambda cells: cells[name]["seconds"])

    def ratio(ours: str, theirs: str) -> str:
        return f"{median(lambda cells: cells[ours]['seconds'] / cells[theirs]['seconds']):.2f}"

    return [
        *(f"{seconds(name):.1f}" for name in ("datasets", "read")),
        ratio("read", "datasets"),
        f"{seconds('again'):.1f}",
        *(f"{seconds(name):.1f}" for name in ("map", "encode")),
        ratio("encode", "map"),
        *(f"{median(lambda c, n=name: c[n]['peak']):.0f}" for name in ("read", "encode")),  # type: ignore[misc]
    ]


def cell(name: str, file: Path, clients: int) -> dict[str, float]:
    """Run one step in this process: its seconds and its peak of memory in MiB."""
    import datasets

    from benchmarks.cells import run_config
    from fedmoe_app import parse_run_config
    from fedmoe_app.data.partitions import assign, partition
    from fedmoe_app.data.sources import load_text_data
    from fedmoe_app.data.tokenizer import embedded_tokenizer
    from fedmoe_app.tasks.classification import encode_classification

    datasets.disable_progress_bars()
    config = parse_run_config(run_config({"data.source": str(file)}))
    tokenizer = embedded_tokenizer() if name in ("map", "encode") else None

    def read() -> None:
        assign(load_text_data(config.data).train, config.data, clients, config.seed)

    def load() -> None:
        datasets.load_dataset(KINDS[file.suffix[1:]], data_files=str(file), split="train")

    work: dict[str, Callable[[], object]] = {"datasets": load, "read": read, "again": read}
    if tokenizer is not None:
        part = partition(load_text_data(config.data).train, config.data, 0, clients, config.seed)
        work["encode"] = lambda: encode_classification(part, tokenizer, config.data.max_length)
        work["map"] = lambda: part.map(
            lambda rows: tokenizer(
                rows["text"], truncation=True, max_length=config.data.max_length
            ),
            batched=True,
            remove_columns=["text"],
        )
    with watch_memory() as peak:
        before, started = peak.bytes, time.perf_counter()
        work[name]()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": (peak.bytes - before) / MIB}


if __name__ == "__main__":
    main()
