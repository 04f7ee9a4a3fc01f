"""Which scheme wins on a pre-trained model, with and without the head in closed form.

    python -m benchmarks.study tune   [--data ag_news clinc150] [--head random closed-form]
    python -m benchmarks.study final  [--data …] [--head …] [--seeds 5] [--workers 2]
    python -m benchmarks.study report [--data …]

The model is the preset ``smollm2-moe`` (135 M parameters, pre-trained); its experts, routers and,
with a random head, its head are trained by ten clients, Dirichlet 0.1. ``dolly15k`` is language
modelling: eight clients with one category each, the model's own head, which is not trained, and
accuracy is that of response tokens. ``tune`` runs every scheme
at every learning rate of one grid on seeds that are not reported, scored on validation rows;
``final`` runs each at its best rate on other seeds, scored on test rows, beside one client with
all data (``centralised``) and, for the random head, clients that train alone. ``--partition`` has
``final`` share the rows in another way, at the same rates. ``report`` prints the tables of
docs/study.md and draws its figure.

Every cell is kept in ``$FEDMOE_HOME/benchmarks/study-…``; a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedTokenizerBase

from benchmarks.cells import (
    REPOSITORY,
    measure_results,
    print_markdown,
)
from benchmarks.shared_prefix import shared_prefix
from benchmarks.study_data import (
    CLOSED,
    DATA,
    LANGUAGE,
    LEFT_OUT,
    PARTITIONS,
    RANDOM,
    is_here,
    split_files,
)
from benchmarks.study_picture import Part, draw
from fedmoe_app.compare.execute import in_process
from fedmoe_app.compare.plan import CENTRALISED, Cell, SchemeEntry
from fedmoe_app.compare.summary import Result, estimate, paired_difference
from fedmoe_app.config.paths import home
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.tasks import setup
from fedmoe_app.tasks.setup import PRESETS

FIGURES = REPOSITORY / "docs" / "images"
GRID = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates, the same for every scheme
TUNING_SEEDS = (101,)
FIRST_SEED = 1  # of those that are reported
HEADS: Mapping[str, Mapping[str, Any]] = {
    RANDOM: {"head.closed-form": "none"},
    CLOSED: {"head.closed-form": "every-round"},
    LEFT_OUT: {"head.closed-form": "every-round", "head.leave-one-out": True},
    LANGUAGE: {"data.num-samples": 0},
}


def _args(**values: Any) -> dict[str, Any]:
    return {"scheme-args": json.dumps(values)}


# The first is what the others are held against.
SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {},
    "fedprox": {"scheme": "fedprox"},
    "fedavgm": {"scheme": "fedavgm"},
    "fedexp": {"scheme": "fedexp"},
    # FedAvg whose server goes further than the mean; FedExP with a step that is said, not found.
    # 1.2 is what HFedMoE's experts get: a mean over 6.5 of 9.2 clients that are nearly orthogonal.
    "server step 1.2": {"scheme": "fedavgm", **_args(lr=1.2, beta=0.0)},
    "server step 2": {"scheme": "fedavgm", **_args(lr=2.0, beta=0.0)},
    "server step 4": {"scheme": "fedavgm", **_args(lr=4.0, beta=0.0)},
    "logitadjust": {"scheme": "logitadjust"},
    "fedvls": {"scheme": "fedvls"},
    "fedmoe": {"scheme": "fedmoe"},
    "hfedmoe": {"scheme": "hfedmoe"},
    "fcmoe": {"scheme": "fcmoe"},
    "fcmoe, projection only": {
        "scheme": "fcmoe", "fcmoe.importance": False, "fcmoe.retention": "none",
    },
    "fedalign": {"scheme": "fedalign"},
    "fedalign, shared gates": {"scheme": "fedalign", "fedalign.gates": "consistency"},
    "flame": {"scheme": "flame"},
    "grammerge": {"scheme": "grammerge"},
    "calmerge": {"scheme": "calmerge", **_args(head=False)},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("tune", "final", "report"))
    parser.add_argument("--data", nargs="+", choices=DATA, default=["ag_news"])
    parser.add_argument("--head", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--rates", type=float, nargs="+", default=GRID, help="of the stage tune")
    parser.add_argument("--seeds", type=int, default=5, help="reported ones, from 1 on")
    parser.add_argument("--partition", choices=PARTITIONS, help="of final and report")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for name in options.data:
        if not is_here(name):
            print(f"{name}: left out, {name}/train.jsonl.gz is not beside the repository")
            continue
        parts = []
        partition = options.partition or DATA[name].partition
        for head in [head for head in options.head if head in DATA[name].rounds]:
            study = Study(
                name, head, tuple(options.schemes), options.workers, tuple(options.rates),
                DATA[name].partition if options.stage == "tune" else partition,
            )  # fmt: skip
            if options.stage == "tune":
                study.tune()
            else:
                parts.append(study.final(options.seeds))
        if options.stage == "report":
            file = FIGURES / f"study-{name}{suffix(name, partition)}.png"
            shared = PARTITIONS[partition].name
            about = f"{DATA[name].clients} clients, {shared}, pre-trained smollm2-moe"
            print(*draw(file, f"{name}: what each scheme comes to", about, parts))


@dataclass(frozen=True)
class Study:
    """One data set with one kind of head."""

    data: str
    head: str
    schemes: tuple[str, ...]
    workers: int
    grid: tuple[float, ...]
    partition: str

    def tune(self) -> None:
        """Score every scheme at every rate of the grid on validation rows; keep the best."""
        entries = [
            SchemeEntry(f"{name} @ {rate:g}", {**SCHEMES[name], "train.learning-rate": rate})
            for name in self.schemes
            for rate in self.grid
        ]
        results = self._run("tune", entries, self._settings("validation"), TUNING_SEEDS, False)
        scores = {row: statistics.fmean(values.values()) for row, values in by_row(results).items()}
        best = {
            name: max(self.grid, key=lambda rate: scores[f"{name} @ {rate:g}"])
            for name in self.schemes
        }
        kept = self._rates() | best
        self._rates_file().parent.mkdir(parents=True, exist_ok=True)
        self._rates_file().write_text(json.dumps(kept, indent=1))
        print(f"\n{self.data}, {self.head} head: validation accuracy, seed {TUNING_SEEDS}\n")
        print_markdown(
            ["scheme", *(f"{rate:g}" for rate in self.grid)],
            [
                [name, *(f"{scores[f'{name} @ {rate:g}']:.3f}" for rate in self.grid)]
                for name in self.schemes
            ],
        )

    def final(self, seeds: int) -> Part:
        """Run every scheme at its rate on the reported seeds, print the table, return its rows."""
        rates = self._rates()
        if "fedavg" not in rates:
            raise SystemExit(f"{self.data}, {self.head} head: run the stage tune first")
        # Centralised training takes the rate that FedAvg was given.
        shared = self._settings("test") | {"train.learning-rate": rates["fedavg"]}
        entries = [
            SchemeEntry(
                name, {**SCHEMES[name], "train.learning-rate": rates.get(name, rates["fedavg"])}
            )
            for name in self.schemes
        ]
        chosen = range(FIRST_SEED, FIRST_SEED + seeds)
        results = self._run("final", entries, shared, chosen, True)
        print_final(self, results, rates)
        return Part(f"{self.head} head", start_of(results), by_row(results))

    def _settings(self, scored_on: str) -> dict[str, Any]:
        sizes = DATA[self.data]
        files = split_files(self.data)
        return {
            "num-server-rounds": sizes.rounds[self.head],
            "data.source": str(files["train"]),
            "data.test-source": str(files[scored_on]),
            "data.max-train-examples": sizes.train,
            "data.max-test-examples": sizes.test,
            "data.max-length": sizes.max_length,
            "data.local-test-fraction": 0.1,
            "model.name": "smollm2-moe",
            "model.train": "experts",
            "train.prefix-cache": "on",
            "robust.guard": "off",  # it bounds shares, and the schemes' own weights are compared
            **sizes.settings,
            **HEADS[self.head],
        }

    def _run(
        self,
        stage: str,
        entries: Sequence[SchemeEntry],
        settings: Mapping[str, Any],
        seeds: Iterable[int],
        centralised: bool,
    ) -> list[Result]:
        name = f"study-{stage}-{self.data}-{self.head}{suffix(self.data, self.partition)}"
        shared = PARTITIONS[self.partition]
        return measure_results(
            name, entries, [shared], settings, tuple(seeds), DATA[self.data].clients, self.workers,
            centralised,
            run_cell,
        )  # fmt: skip

    def _rates_file(self) -> Path:
        return home() / "benchmarks" / "study" / f"rates-{self.data}-{self.head}.json"

    def _rates(self) -> dict[str, float]:
        file = self._rates_file()
        return dict(json.loads(file.read_text())) if file.is_file() else {}


def suffix(data: str, partition: str) -> str:
    """Return what the name of a folder or figure ends with."""
    return "" if partition == DATA[data].partition else f"-{partition}"


def run_cell(cell: Cell, draft: Path) -> Path:
    """Run a cell with the hidden states that other cells have computed, and one tokenizer.

    In a run each of ten clients loads the tokenizer each time that it is asked; here they share it.
    """
    with (
        shared_prefix(home() / "benchmarks" / "study" / "hidden-states"),
        patch.object(setup, "load_tokenizer", _load_tokenizer_once),
    ):
        return in_process(cell, draft)


@functools.cache
def _tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(name, PRESETS)


def _load_tokenizer_once(name: str, presets: Collection[str]) -> PreTrainedTokenizerBase:
    return _tokenizer_of(name)


def by_row(results: Sequence[Result], what: str = "accuracy") -> dict[str, dict[int, float]]:
    """Return the final accuracy, or loss, by row and seed; failed cells are left out."""
    rows: dict[str, dict[int, float]] = {}
    for result in results:
        found = rows.setdefault(result.cell.scheme, {})
        value = getattr(result.finished, what, None)
        if value is not None:
            found[result.cell.seed] = value
    return rows


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: the smallest times m, the next times m − 1, and so on."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, value * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


def paired_p(values: Mapping[int, float], reference: Mapping[int, float]) -> float | None:
    """Return the two-sided p-value of a paired t-test; None below two pairs or without spread."""
    from scipy.stats import ttest_rel

    seeds = sorted(values.keys() & reference.keys())
    differences = [values[seed] - reference[seed] for seed in seeds]
    if len(seeds) < 2 or len(set(differences)) < 2:
        return None
    return float(ttest_rel([values[s] for s in seeds], [reference[s] for s in seeds]).pvalue)


def rounds_to_stay(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    """Return the first of two rounds in a row at the target; the last one may stand alone."""
    reached = [(number, accuracy >= target) for number, accuracy in curve if number > 0]
    for (number, now), (_, after) in zip(reached, [*reached[1:], (0, True)], strict=True):
        if now and after:
            return number
    return None


def print_final(study: Study, results: Sequence[Result], rates: Mapping[str, float]) -> None:
    """Print one table.

    Accuracy, what it adds to FedAvg, rounds to FedAvg's end; loss, and what it adds; macro-F1;
    accuracy of clients' models on their own held-out rows, and its standard deviation over the
    clients; bytes; time.
    """
    values, losses = by_row(results), by_row(results, "loss")
    reference = values["fedavg"]
    p_values = {
        name: p
        for name in study.schemes[1:]
        if (p := paired_p(values.get(name, {}), reference)) is not None
    }
    adjusted = holm(p_values)
    seeds = sorted(reference)
    print(
        f"\n{study.data}, {study.head} head: {DATA[study.data].train} training rows, "
        f"{DATA[study.data].clients} clients, {PARTITIONS[study.partition].name}, "
        f"{DATA[study.data].rounds[study.head]} rounds, seeds {seeds}; "
        f"before training {start_of(results):.3f}\n"
    )
    rows = []
    for name in (CENTRALISED, *study.schemes):
        mine = [r.finished for r in results if r.cell.scheme == name and r.finished]
        found, difference, more_loss = estimate(list(values.get(name, {}).values())), None, None
        if name not in (CENTRALISED, "fedavg"):
            difference = paired_difference(values.get(name, {}), reference)
            more_loss = paired_difference(losses.get(name, {}), losses["fedavg"])
        rows.append(
            [
                name,
                "" if name == CENTRALISED else f"{rates.get(name, rates['fedavg']):g}",
                _shown(found),
                _points(difference),
                f"{adjusted[name]:.2f}" if name in adjusted else "",
                _rounds([r for r in results if r.cell.scheme == name], reference),
                _mean([figures.loss for figures in mine], 3),
                _signed(more_loss),
                _mean([figures.macro_f1 for figures in mine], 3),
                _mean([figures.local_accuracy for figures in mine], 3),
                _mean([_spread(figures.local_variance) for figures in mine], 3),
                _mean([figures.bytes_up / 1e6 for figures in mine], 1),
                _mean([figures.seconds for figures in mine], 0),
            ]
        )
    headers = ["scheme", "rate", "accuracy", "minus fedavg, points", "p (Holm)", "rounds"]
    own = ["loss", "minus fedavg's", "macro-F1", "own rows", "spread"]
    print_markdown([*headers, *own, "MB up a round", "s"], rows)


def start_of(results: Sequence[Result]) -> float:
    """Return the mean accuracy of FedAvg's runs before their first round."""
    return statistics.fmean(_at_start(r) for r in results if r.cell.scheme == "fedavg")


def _at_start(result: Result) -> float:
    return dict(result.finished.curve).get(0, float("nan")) if result.finished else float("nan")


def _rounds(results: Sequence[Result], reference: Mapping[int, float]) -> str:
    reached = [
        rounds_to_stay(result.finished.curve, reference[result.cell.seed])
        for result in results
        if result.finished and result.cell.seed in reference
    ]
    known = [number for number in reached if number is not None]
    if not known:
        return f"never of {len(reached)}" if reached else ""
    return f"{statistics.fmean(known):.1f} ({len(known)} of {len(reached)})"


def _spread(variance: float | None) -> float | None:
    return None if variance is None else variance**0.5


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else ""


def _shown(found: Any) -> str:
    if found is None:
        return ""
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width else "")


def _signed(difference: Any) -> str:
    if difference is None:
        return ""
    width = f" ± {difference.half_width:.3f}" if difference.half_width is not None else ""
    return f"{difference.mean:+.3f}{width}"


def _points(difference: Any) -> str:
    if difference is None:
        return ""
    width = f" ± {100 * difference.half_width:.1f}" if difference.half_width is not None else ""
    return f"{100 * difference.mean:+.1f}{width}"


if __name__ == "__main__":
    main()
