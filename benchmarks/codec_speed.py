"""Encode and decode of every codec on one thread, in GB of float32 a second.

    python -m benchmarks.codec_speed [--megabytes 64]

Medians of the CPU time of the thread over five interleaved repetitions, so that other processes of
the machine disturb little; the copy of the same memory stands beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.cells import print_markdown
from fedmoe_app.wire.codecs import CODEC_NAMES, make_codec

REPETITIONS, WIDTH = 5, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    number = options.megabytes * 10**6 // (4 * WIDTH)
    values = 1e-3 * torch.randn(number * WIDTH, generator=torch.Generator().manual_seed(0))
    rows = ((number, WIDTH),)
    gigabytes = 4 * len(values) / 1e9
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("copy", *CODEC_NAMES)}
    sizes = {"copy": 4 * len(values)}
    for repetition in range(REPETITIONS):
        copied = seconds(values.clone)
        found["copy"].append((copied, copied))
        for name in CODEC_NAMES:
            codec = make_codec(name)
            coded: list[bytes] = []
            encode = seconds(lambda: coded.append(codec.encode(values, rows, [repetition])))  # noqa: B023
            decode = seconds(lambda: codec.decode(memoryview(coded[0]), rows))  # noqa: B023
            found[name].append((encode, decode))
            sizes[name] = len(coded[0])
    table = [
        [
            name,
            *(f"{gigabytes / statistics.median(t[i] for t in times):.2f}" for i in (0, 1)),
            f"{8 * sizes[name] / len(values):.2f}",
        ]
        for name, times in found.items()
    ]
    print(f"{gigabytes:.3f} GB of float32 in rows of {WIDTH}, one thread")
    print_markdown(["codec", "encode GB/s", "decode GB/s", "bits a value"], table)


def seconds(work: Callable[[], object]) -> float:
    """Return the thread's CPU time of a call."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


if __name__ == "__main__":
    main()
