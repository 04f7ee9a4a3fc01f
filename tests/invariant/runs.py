"""Which runs are golden: small whole runs that between them go through every way of training.

Each runs on a model of a few thousand parameters that is made on the spot, with a tokenizer of one
token a word, so that nothing depends on caches or on texts of installed libraries.

Every scheme runs plainly, with buffered rounds, set back to a checkpoint, and with nodes that hold
only the experts that were chosen for them. These cases are absent, because fedmoe refuses them:

* chosen experts of fedavg, fedprox, pflmoe, fcmoe and fedalign: they do not choose experts once a
  round. hfedmoe runs with ``selection = "round"``, combine with the selection of fedmoe and without
  parts that keep tensors on the nodes or need the probabilities of all experts.
* buffered rounds of fcmoe with retention, fedalign and combine with private gates: their changes
  mean nothing to a newer state. They run with the settings that are allowed.

The other schemes, and what goes with every scheme, have
one short run each; what else can change a run's numbers has one case each (:data:`OTHERS`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fedmoe_app import run_in_process
from fedmoe_app.config.names import ADAPTERS_ONLY
from tests.bases import save_base
from tests.conftest import draw_nothing, flat_config

CLIENTS = 3
ROUNDS = 3

Config = Mapping[str, bool | float | int | str]


@dataclass(frozen=True)
class GoldenRun:
    """A run.

    Attributes:
        config: what differs from the defaults and from :data:`COMMON`.
        rows: the kind of its data: texts, answers or choices.
        nodes: what is added to the node configs, by client.
        set_back: the round to whose checkpoint the finished run is set back, to be resumed there.
    """

    config: Config
    rows: str = "texts"
    nodes: Mapping[int, Config] = field(default_factory=dict)
    set_back: int | None = None


COMMON: Config = {
    "num-server-rounds": ROUNDS,
    "data.max-length": 16,
    "data.min-partition-size": 4,
    "data.num-samples": 2,
    "data.max-new-tokens": 3,
    "train.max-steps": 2,
    "train.per-device-train-batch-size": 4,
    # So small that rounding, which Adam turns into whole steps where gradients are nearly zero,
    # stays far below the tolerance of figures from one processor to another.
    "train.learning-rate": 1e-3,
    "hfedmoe.budgets": "2, 3, 4",
    "fedmoe.experts-per-client": 3,
    "fedmoe.usage-examples": 8,
    "hfedmoe.usage-examples": 8,
}
SCHEMES: dict[str, Config] = {
    "fedavg": {},
    "fedprox": {"fedprox.proximal-mu": 0.1},
    "fedmoe": {},
    "pflmoe": {"pflmoe.joint": True, "pflmoe.gate-learning-rate": 1e-3},
    "hfedmoe": {},
    "fcmoe": {},
    "fedalign": {},
    "combine": {
        "combine.selection": "hfedmoe",
        "combine.loss": "fedalign",
        "combine.gates": "fedalign",
        "combine.experts": "fcmoe",
    },
}
# Buffers of two of three clients: from the second round on one reply is late.
BUFFERED: Config = {"rounds": "buffered", "buffer-size": 2}
NOT_STALE: dict[str, Config] = {
    "fcmoe": {"fcmoe.retention": "none"},
    "fedalign": {"fedalign.gates": "consistency"},
    "combine": {"fedalign.gates": "consistency", "fcmoe.retention": "none"},
}
# The files of a round are kept, or there would be nothing to go on from.
RESUMED: Config = {"num-server-rounds": 2, "keep-client-state": True, "diagnostics": False}
CHOSEN: Config = {
    "model.experts-in-memory": "chosen",
    "model.train": "experts",
    "model.head": "label-words",
}
CHOOSING: dict[str, Config] = {
    "fedmoe": {},
    "hfedmoe": {"hfedmoe.selection": "round"},
    "combine": {
        "combine.selection": "fedmoe",
        "combine.loss": "fedprox",
        "combine.gates": "hfedmoe",
        "combine.experts": "hfedmoe",
    },
}
SHORT: Config = {"num-server-rounds": 2}
OTHERS: dict[str, GoldenRun] = {
    "lora": GoldenRun({**SHORT, "model.train": "expert-lora", "model.attention-lora": True}),
    "codecs": GoldenRun(
        {
            "wire.codec": "topk+int8",
            "wire.error-feedback": True,
            "wire.topk-share": 0.2,
            "wire.download-codec": "bf16",
            "keep-client-state": True,  # residuals
        }
    ),
    "causal-lm": GoldenRun(
        {**SHORT, "data.task": "causal-lm", "data.partition-by": "label"}, "answers"
    ),
    "exact-match": GoldenRun(
        {
            "data.task": "causal-lm",
            "data.partition-by": "label",
            "data.metric": "exact-match",
            "num-server-rounds": 1,
        },
        "answers",
    ),
    "multiple-choice": GoldenRun(
        {**SHORT, "data.task": "multiple-choice", "data.partition-by": "label"}, "choices"
    ),
    "some-clients": GoldenRun({"clients-per-round": 2, "sampling": "examples"}),
    "failing-client": GoldenRun({}, nodes={1: {"partition-id": 7}}),
    "schedule": GoldenRun(
        {
            "train.lr-scheduler-type": "cosine",
            "train.warmup-steps": 1.0,
            "train.gradient-accumulation-steps": 2,
            "evaluate-every": 2,
            "wire.downloads": "full",
            "data.partition": "iid",
        }
    ),
    "guarded": GoldenRun({**SHORT, "robust.guard": "default"}),
    "guarded-resumed": GoldenRun(RESUMED | {"robust.guard": "tight"}, set_back=1),
    "projections": GoldenRun(
        {**SHORT, "scheme": "fcmoe", "exact-pairs-up-to": 1, "projection-size": 64}
    ),
}
# Schemes without a table of their own have one short run each. They are listed, so that a new
# scheme needs no reference to begin with.
LATER = (
    *("logitadjust", "fedlc", "fedrs", "fedntd", "fedlmd", "fedvls", "feddecorr"),
    *("fedavgm", "fedadam", "fedyogi", "fedexp", "fednova", "scaffold", "feddyn", "qfedavg"),
    *("median", "trimmedmean", "multikrum", "centredclip"),
    *("geometricmedian", "trustedclip", "krum", "fltrust"),
    *("grammerge", "flame", "globalbalance", "ffalora", "rolora", "fedexlora"),
    *("calmerge", "flexmoe", "localnoise"),
)
LATER_ARGS: dict[str, Config] = {
    "scaffold": {"scheme-args": '{"population": 3}'},
    "feddyn": {"scheme-args": '{"population": 3}'},
    "localnoise": {"scheme-args": '{"seeded": true}'},
    **{name: {"model.train": "expert-lora"} for name in ADAPTERS_ONLY},
}
# What goes with every scheme.
BESIDE: dict[str, Config] = {
    "head": {"head.closed-form": "every-round"},
    "head-left-out": {"head.closed-form": "every-round", "head.leave-one-out": True},
    "head-after": {"head.closed-form": "after", "head.method": "ridge"},
    "average-moving": {"average.of": "moving"},
    "average-last": {"average.of": "last"},
}

# Those of the short runs that go another way than the rest; the others are slow tests.
FAST = {
    *("logitadjust", "fedvls", "feddecorr", "fedavgm", "fedexp", "scaffold", "qfedavg", "krum"),
    *("grammerge", "fedexlora", "flexmoe", "calmerge", "head-left-out", "average-moving"),
}
SLOW = {*LATER, *BESIDE} - FAST


def golden_runs() -> dict[str, GoldenRun]:
    """Return all runs by name."""
    runs: dict[str, GoldenRun] = {}
    for scheme, settings in SCHEMES.items():
        config = {"scheme": scheme, **settings}
        runs[f"{scheme}-plain"] = GoldenRun(config)
        runs[f"{scheme}-buffered"] = GoldenRun(config | BUFFERED | NOT_STALE.get(scheme, {}))
        runs[f"{scheme}-resumed"] = GoldenRun(config | RESUMED, set_back=1)
        if scheme in CHOOSING:
            runs[f"{scheme}-chosen"] = GoldenRun(config | CHOSEN | CHOOSING[scheme])
    for scheme in LATER:
        runs[scheme] = GoldenRun({"scheme": scheme, **SHORT, **LATER_ARGS.get(scheme, {})})
    beside = {name: GoldenRun({**SHORT, **config}) for name, config in BESIDE.items()}
    return runs | beside | OTHERS


RUNS = golden_runs()


# -- running them ------------------------------------------------------------------------------


def settings_of(run: GoldenRun) -> list[str]:
    """Return the keys of the run config that a run sets."""
    return sorted({**COMMON, **run.config})


def make_material(folder: Path) -> Path:
    """Write the base model and the data of all runs into a folder; return it."""
    save_base(folder / "base", "Qwen3Moe")
    for kind, row in {"texts": _text, "answers": _answer, "choices": _choices}.items():
        for name, first, number in (("train", 0, 60), ("test", 60, 12)):
            rows = [json.dumps(row(i)) for i in range(first, first + number)]
            (folder / f"{kind}-{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def run_golden(run: GoldenRun, material: Path, folder: Path) -> Path:
    """Carry out a run and return its result folder, which lies in ``folder``."""
    results = _carry_out(run, material, folder)
    return results if run.set_back is None else resume_golden(run, material, folder, run.set_back)


def resume_golden(run: GoldenRun, material: Path, folder: Path, after: int) -> Path:
    """Set the run that was carried out in ``folder`` back to a checkpoint, and resume it there.

    Args:
        run, material, folder: as they were given to :func:`run_golden`.
        after: the round of the checkpoint.
    """
    checkpoint = folder / "run" / "checkpoints" / f"round-{after:05d}"
    return _carry_out(run, material, folder, {"resume": str(checkpoint)})


def _carry_out(run: GoldenRun, material: Path, folder: Path, more: Config | None = None) -> Path:
    flat = flat_config(
        **COMMON
        | {
            "robust.guard": "off",  # it came after most of these runs; some switch it on
            "model.name": str(material / "base"),
            "data.source": str(material / f"{run.rows}-train.jsonl"),
            "data.test-source": str(material / f"{run.rows}-test.jsonl"),
            "output-dir": str(folder),
            "run-name": "run",
        }
        | run.config
        | (more or {})
    )
    nodes = [
        {"partition-id": client, "num-partitions": CLIENTS, **run.nodes.get(client, {})}
        for client in range(CLIENTS)
    ]
    with _surroundings(folder, material / "cache"):
        return run_in_process(flat, CLIENTS, nodes)


@contextmanager
def _surroundings(folder: Path, cache: Path) -> Iterator[None]:
    """Give a run its own ``$FEDMOE_HOME`` and one CPU thread, and draw nothing.

    Plots take longer than the rounds, and pictures are not compared. The cache is that of the
    material, so that whether its model can be trained is tried once a mode, not once a run.
    """
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    cache.mkdir(exist_ok=True)
    if not (home / "cache").exists():
        (home / "cache").symlink_to(cache, target_is_directory=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        patch.dict(os.environ, FEDMOE_HOME=str(home)),
        patch.object(torch.cuda, "is_available", lambda: False),
        patch("fedmoe_app.report.files.save", draw_nothing),
    ):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


# -- data, of words that the tokenizer knows ---------------------------------------------------


def _text(i: int) -> dict[str, Any]:
    kind = ("good", "bad")[i % 2]
    words = [kind, ("day", "night")[i // 2 % 2], "number", str(i % 40), str(i * 7 % 40)]
    label = "yes" if (kind == "good") != (i % 9 == 0) else "no"
    return {"text": " ".join(words[: 3 + i % 3]), "label": label}


def _answer(i: int) -> dict[str, Any]:
    question = f"{('good', 'bad')[i % 2]} number {i % 20}"
    return {"instruction": question, "response": f"#### {i % 20 + i % 2}", "label": str(i % 3)}


def _choices(i: int) -> dict[str, Any]:
    options = ["good day", "bad night", f"number {i % 40}", "yes"][: 2 + i % 3]
    return {
        "question": f"day {i % 40} or night",
        "choices": options,
        "answerKey": "AB"[i % 2],
        "label": str(i % 3),
    }
