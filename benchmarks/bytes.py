"""Bytes up per round of the codecs, and what they cost in accuracy.

    python -m benchmarks.bytes [--only embedded ag_news fine-grained] [--seeds 3] [--workers 2]
    python -m benchmarks.bytes --sizes

Ten clients, Dirichlet 0.1, FedAvg, the settings of :mod:`benchmarks.baselines`; every codec with
error feedback. "Part of dense" is the bytes of all replies of a round over those of a dense fp32
FedAvg reply of the same model, counted by :func:`fedmoe_app.wire.records.record_bytes` from the
records that are sent. "Points lost" is seed by seed against fp32 of the same scheme.

``--sizes`` trains nothing: it encodes one reply of random changes in every codec.
``fine-grained`` has 64 experts a layer of which a client trains 8 (FedMoE), with LoRA of rank 8.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.baselines import CLIENTS, settings_of
from benchmarks.cells import SHARED_DATA, measure, print_markdown, run_config
from benchmarks.schemes import UNEQUAL
from fedmoe_app import ClientUpdate, ModelState, RoutingStats, parse_run_config
from fedmoe_app.compare.plan import SchemeEntry
from fedmoe_app.compare.summary import Row
from fedmoe_app.config.paths import home
from fedmoe_app.moe.layers import read_state
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.codecs import CODEC_NAMES, make_codec
from fedmoe_app.wire.records import encode_update, record_bytes

FP32, DENSE, DENSE_LORA = "fp32", "all parameters, fp32", "LoRA, all experts, fp32"
CODECS: Mapping[str, Mapping[str, Any]] = {
    FP32: {},
    "int8": {"wire.codec": "int8"},
    "int4": {"wire.codec": "int4"},
    "topk 10% + int4": {"wire.codec": "topk+int4", "wire.topk-share": 0.1},
}
METRICS = (
    "train-loss",
    "num-steps",
    "num-truncated",
    "loss",
    "accuracy",
    "num-test-items",
    "local-loss",
    "local-accuracy",
    "residual-round",
)
FINE = "fine-grained"
FINE_SETTINGS: dict[str, Any] = {
    "fedmoe.experts-per-client": 8,
    "model.train": "expert-lora",
    "model.lora-rank": 8,
    "num-server-rounds": 4,
}
SETTINGS = ("embedded", "ag_news", FINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a third of the training examples")
    parser.add_argument("--sizes", action="store_true", help="no training: one reply's bytes")
    options = parser.parse_args()
    reduced = {"data.max-train-examples": 1600} if options.quick else {}
    if options.sizes:
        print_sizes()
        return
    seeds = range(1, options.seeds + 1)
    for name in options.only:
        if name == "ag_news" and not (SHARED_DATA / name).is_dir():
            print(f"{name}: left out, {name}/train.jsonl.gz is not beside the repository")
        elif name == FINE:
            entries = _entries("fedmoe", options.codecs)
            base = settings_of("embedded") | reduced
            base |= {"model.name": str(save_fine_model(base))}
            dense = {DENSE: _dense_bytes(base), DENSE_LORA: _dense_bytes(base | FINE_SETTINGS)}
            compare(name, entries, base | FINE_SETTINGS, seeds, options.workers, dense)
        else:
            entries = _entries("fedavg", options.codecs)
            settings = settings_of(name) | reduced
            compare(name, entries, settings, seeds, options.workers)


def _dense_bytes(settings: Mapping[str, Any]) -> float:
    """Return the bytes of all clients' replies in fp32 with all experts, of a round."""
    return CLIENTS * float(reply_bytes(run_config(settings), None, FP32))


def _entries(scheme: str, codecs: Sequence[str]) -> list[SchemeEntry]:
    chosen = [FP32, *(codec for codec in codecs if codec != FP32)]  # what the others are held to
    return [SchemeEntry(codec, {"scheme": scheme, **CODECS[codec]}) for codec in chosen]


def compare(
    name: str,
    entries: Sequence[SchemeEntry],
    settings: Mapping[str, Any],
    seeds: range,
    workers: int,
    dense: Mapping[str, float] | None = None,
) -> None:
    """Run one setting and print its table.

    Bytes are divided by those of ``dense``, by name; None are those of fp32.
    """
    rows = measure(
        f"bytes-{name}", entries, [UNEQUAL], settings, seeds, CLIENTS, workers, centralised=False
    )
    dense = dense or {row.scheme: row.bytes_up or 0.0 for row in rows if row.scheme == FP32}
    headers = ["codec", "bytes up a round", *(f"part of {row}" for row in dense)]
    print(f"\n{name}, {UNEQUAL.name}, {CLIENTS} clients, {len(seeds)} seeds")
    print_markdown(
        [*headers, "accuracy", "points lost"],
        [_shown(row, list(dense.values())) for row in rows],
    )


def _shown(row: Row, dense: Sequence[float]) -> list[str]:
    size, lost = row.bytes_up or 0.0, row.difference
    return [
        row.scheme,
        human_bytes(size),
        *(f"1/{whole / size:.1f}" for whole in dense),
        MISSING if row.accuracy is None else f"{row.accuracy.mean:.2%}",
        MISSING if lost is None else f"{-100 * lost.mean:+.2f}",
    ]


def print_sizes() -> None:
    """Encode one reply of random changes in every codec, of both models, and print the bytes."""
    tiny = run_config(settings_of("embedded"))
    fine_base = {**tiny, "model.name": str(save_fine_model(settings_of("embedded")))}
    fine = {**fine_base, **FINE_SETTINGS}
    whole = reply_bytes(fine_base, None, CODEC_NAMES[0])
    rows = []
    for name in CODEC_NAMES:
        dense, sparse = reply_bytes(tiny, None, name), reply_bytes(fine, 8, name)
        first = reply_bytes(tiny, None, CODEC_NAMES[0])
        parts = f"1/{first / dense:.1f}", f"1/{whole / sparse:.0f}"
        rows.append([name, human_bytes(dense), parts[0], human_bytes(sparse), parts[1]])
    headers = ["codec", "all experts", "part of fp32", "64 experts, budget 8, LoRA"]
    print_markdown([*headers, "part of all parameters, fp32"], rows)


def reply_bytes(flat: Mapping[str, Any], budget: int | None, codec: str) -> int:
    """Return the bytes of a reply: random changes of ``budget`` experts a layer, or of all."""
    import torch

    config = parse_run_config(flat)
    setup = load_setup(config, server_data(config.data).label_names)
    state, shape = read_state(setup.model, setup.layers), setup.shape
    noise = torch.Generator().manual_seed(0)
    changes = ModelState()
    for name, tensor in state.named():
        changes.insert(name, 1e-3 * torch.randn(tensor.shape, generator=noise))
    taken = shape.num_experts if budget is None else budget
    changes.experts = {key: t for key, t in changes.experts.items() if key[1] < taken}
    cells = (shape.num_layers, shape.num_experts)
    trained = torch.zeros(cells, dtype=torch.int64)  # [L, E]
    trained[:, :taken] = 30
    share = torch.full(cells, 1 / shape.num_experts)
    tokens = torch.full(cells[:1], 20_000)
    routing = RoutingStats(
        20_000 * trained.clamp_max(1), share, share, share, share, trained, tokens
    )
    metrics = dict.fromkeys(METRICS, 1.0)
    update = ClientUpdate(0, 480, changes, routing, metrics)
    return record_bytes(encode_update(update, make_codec(codec, 0.1)))


def save_fine_model(settings: Mapping[str, Any]) -> Path:
    """Save the tiny preset with 64 experts of a quarter of the size; return its folder."""
    import torch

    folder = home() / "benchmarks" / "fine-grained-base"
    if (folder / "config.json").exists():
        return folder
    config = parse_run_config(run_config({**settings, "model.train": "all"}))
    setup = load_setup(config, server_data(config.data).label_names)
    fine: Any = copy.deepcopy(setup.model.config)
    fine.num_experts, fine.num_experts_per_tok = 64, 8
    fine.moe_intermediate_size //= 4
    torch.manual_seed(0)
    type(setup.model)(fine).save_pretrained(folder)
    setup.tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
