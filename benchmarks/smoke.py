"""Every registered scheme on two small tasks: does it run, learn, and come near FedAvg?

    python -m benchmarks.smoke [--data embedded clinc150] [--schemes fedavg,scaffold] [--seeds 3]
    python -m benchmarks.smoke --report

A smoke test, not a study: a preset of random weights, four clients, a few hundred texts, nothing
tuned, three seeds. Schemes that need adapters stand in a table of their own, with FedAvg on the
same adapters. Every cell is kept in ``$FEDMOE_HOME/benchmarks/smoke-…``: a run that was stopped
goes on there. ``--report`` runs nothing and prints what is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.cells import SHARED_DATA, print_markdown, run_config
from fedmoe_app import ConfigError
from fedmoe_app.compare.execute import Outcomes, in_process, run_cells
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.plan import Cell, Partition, SchemeEntry, make_plan
from fedmoe_app.compare.summary import Estimate, Row, results_of, summarise
from fedmoe_app.config.names import ADAPTERS_ONLY, SCHEME_NAMES
from fedmoe_app.config.paths import home
from fedmoe_app.results.table import human_bytes

CLIENTS = 4
UNEQUAL = Partition("Dirichlet 0.3", {"data.partition": "dirichlet", "data.alpha": 0.3})
FEDAVG = "fedavg"
DATA: Mapping[str, Mapping[str, Any]] = {
    "embedded": {
        "num-server-rounds": 3,
        "data.max-train-examples": 480,
        "data.max-test-examples": 300,
        "data.max-length": 32,
    },
    "clinc150": {
        "num-server-rounds": 3,
        "data.max-train-examples": 1000,
        "data.max-test-examples": 300,
        "data.max-length": 20,
    },
}
SHARED: Mapping[str, Any] = {
    "model.name": "qwen3moe-tiny",
    "data.min-partition-size": 16,
    "train.num-train-epochs": 2.0,
    "train.learning-rate": 5e-3,
    "robust.guard": "off",  # it bounds shares, and the schemes' own weights are compared
    "diagnostics": False,
}
ADAPTERS: Mapping[str, Any] = {"model.train": "expert-lora"}
ADAPTERS_NAME = "adapters"
# Who takes part is known here: all clients.
OF_POPULATION = ("scaffold", "feddyn")
# What goes with every scheme, on FedAvg.
WITH_FEDAVG: Mapping[str, Mapping[str, Any]] = {
    "fedavg, head in closed form": {"head.closed-form": "every-round"},
    "fedavg, left-out head": {"head.closed-form": "every-round", "head.leave-one-out": True},
    "fedavg, averaged model": {"average.of": "moving"},
}
COMBINED: Mapping[str, Any] = {
    "combine.selection": "hfedmoe",
    "combine.loss": "logitadjust",
    "combine.gates": "hfedmoe",
    "combine.experts": "fcmoe",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--schemes", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    wanted = {FEDAVG, *options.schemes.split(",")} if options.schemes else set()
    for name in options.data:
        if name != "embedded" and not (SHARED_DATA / name).is_dir():
            print(f"{name}: left out, {name}/train.jsonl.gz is not beside the repository")
            continue
        for adapters in (False, True):
            entries = [e for e in entries_of(adapters) if not wanted or e.name in wanted]
            if entries != [_entry(FEDAVG)] or wanted == {FEDAVG}:
                chosen = tuple(range(1, options.seeds + 1))
                smoke = Smoke(name, adapters, chosen, options.workers, options.report)
                smoke.print_table(entries)


def entries_of(adapters: bool) -> list[SchemeEntry]:
    """Return FedAvg and all schemes that need adapters, or all that do not."""
    if adapters:
        return [_entry(name) for name in (FEDAVG, *ADAPTERS_ONLY)]
    rows = [_entry(name) for name in SCHEME_NAMES if name not in ADAPTERS_ONLY]
    return rows + [SchemeEntry(name, dict(given)) for name, given in WITH_FEDAVG.items()]


def _entry(name: str) -> SchemeEntry:
    given: dict[str, Any] = {"scheme": name}
    if name in OF_POPULATION:
        given["scheme-args"] = json.dumps({"population": CLIENTS})
    return SchemeEntry(name, given | (dict(COMBINED) if name == "combine" else {}))


@dataclass(frozen=True)
class Smoke:
    """One data set, with or without adapters."""

    data: str
    adapters: bool
    seeds: tuple[int, ...]
    workers: int
    report: bool

    def print_table(self, entries: Sequence[SchemeEntry]) -> None:
        """Run what is not kept, and print one row a scheme, or why there is none."""
        refused = {entry.name: reason for entry in entries if (reason := self._refused(entry))}
        taken = [entry for entry in entries if entry.name not in refused]
        plan = make_plan(self._flat(), taken, [UNEQUAL], self.seeds, CLIENTS, None, False)
        with ComparisonFolder(home() / "benchmarks" / self._name) as folder:
            folder.write_plan(plan)
            outcomes = (
                _kept(plan.cells, folder)
                if self.report
                else run_cells(plan.cells, folder, self.workers, run_cell)
            )
        rows = summarise(plan, results_of(plan, outcomes))
        print(f"\n{self._title()}\n")
        table = [_shown(row) for row in rows]
        table += [[name, f"refused: {reason}", "", "", ""] for name, reason in refused.items()]
        print_markdown(["scheme", "accuracy", "minus fedavg, points", "up a round", "s"], table)
        for key, reason in outcomes.failures.items():
            label = next(cell.label for cell in plan.cells if cell.key == key)
            print(f"\nfailed: {label}: {reason}")

    @property
    def _name(self) -> str:
        return "-".join(["smoke", self.data, *([ADAPTERS_NAME] if self.adapters else [])])

    def _title(self) -> str:
        sizes = DATA[self.data]
        return (
            f"{self.data}{', adapters' if self.adapters else ''}: "
            f"{sizes['data.max-train-examples']} training rows, {CLIENTS} clients, "
            f"{UNEQUAL.name}, {sizes['num-server-rounds']} rounds, seeds "
            f"{', '.join(map(str, self.seeds))}"
        )

    def _flat(self) -> dict[str, Any]:
        files = {}
        if self.data != "embedded":
            folder = SHARED_DATA / self.data
            files = {
                "data.source": str(folder / "train.jsonl.gz"),
                "data.test-source": str(folder / "test.jsonl.gz"),
            }
        mode = ADAPTERS if self.adapters else {}
        return dict(run_config({**SHARED, **DATA[self.data], **files, **mode}))

    def _refused(self, entry: SchemeEntry) -> str:
        """Return why fedmoe refuses a row before its run, or "" if it does not."""
        try:
            make_plan(self._flat(), [entry], [UNEQUAL], self.seeds[:1], CLIENTS, None, False)
        except ConfigError as error:
            return str(error)
        return ""


def run_cell(cell: Cell, draft: Path) -> Path:
    """Run a cell in this process, and draw nothing: pictures take longer than its rounds."""
    with patch("fedmoe_app.report.files.save", _draw_nothing):
        return in_process(cell, draft)


def _draw_nothing(specs: Mapping[Path, object], points: float | None = None) -> list[Path]:
    for path in specs:
        path.touch()
    return list(specs)


def _kept(cells: Sequence[Cell], folder: ComparisonFolder) -> Outcomes:
    outcomes = Outcomes()
    for cell in cells:
        if figures := folder.kept(cell):
            outcomes.add(cell, figures)
    return outcomes


def _shown(row: Row) -> list[str]:
    if row.accuracy is None:
        return [row.scheme, "not run" if not row.runs else "failed", "", "", ""]
    part = f" ({row.runs} of {row.seeds} seeds)" if row.runs < row.seeds else ""
    return [
        row.scheme,
        f"{row.accuracy.mean:.3f}{_width(row.accuracy.std, '{:.3f}')}{part}",
        _points(row.difference),
        human_bytes(row.bytes_up),
        f"{row.seconds:.1f}" if row.seconds is not None else "",
    ]


def _points(value: Estimate | None) -> str:
    if value is None:
        return ""
    width = None if value.half_width is None else 100 * value.half_width
    return f"{100 * value.mean:+.1f}{_width(width, '{:.1f}')}"


def _width(value: float | None, form: str) -> str:
    return "" if value is None else f" ± {form.format(value)}"


if __name__ == "__main__":
    main()
