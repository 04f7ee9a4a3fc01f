"""The seven schemes side by side, and what each part of the papers' schemes does.

    python -m benchmarks.schemes [--only embedded clinc150-domain] [--workers 2] [--seeds 3]
    python -m benchmarks.schemes --ablations

Ten clients; the settings of :mod:`benchmarks.baselines`. Each is a ``fedmoe compare``, kept in
``$FEDMOE_HOME/benchmarks``, and prints its Markdown table: accuracy of the global model with its
95% interval over the seeds, difference to FedAvg seed by seed, local accuracy, rounds to 90% and
95% of centralised training, bytes, seconds. Nothing was tuned per scheme.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines import CLIENTS, settings_of
from benchmarks.cells import REPOSITORY, SHARED_DATA, measure
from fedmoe_app.compare.plan import Partition, read_schemes
from fedmoe_app.compare.tables import headers, markdown_table, shown

SCHEMES = (
    "fedavg",
    "fedprox",
    "fedmoe",
    "pflmoe",
    "hfedmoe",
    "fcmoe",
    "fcmoe-filtered",
    "fedalign",
    "fedalign-consistency-gates",
)
ABLATIONS = (
    "fedavg",
    "fedmoe",
    "fcmoe",
    "fcmoe-no-importance",
    "fcmoe-no-projection",
    "fedalign",
    "fedalign-consistency-gates",
    "fedalign-average-gates",
    "hfedmoe",
    "hfedmoe-no-selection",
)
UNEQUAL = Partition("Dirichlet 0.1", {"data.partition": "dirichlet", "data.alpha": 0.1})
BY_DOMAIN = Partition("by domain", {"data.partition": "natural", "data.partition-by": "domain"})


@dataclass(frozen=True)
class Setting:
    """A data set and how it is split."""

    data: str
    partition: Partition


SETTINGS: Mapping[str, Setting] = {
    "embedded": Setting("embedded", UNEQUAL),
    "ag_news": Setting("ag_news", UNEQUAL),
    "clinc150": Setting("clinc150", UNEQUAL),
    "clinc150-domain": Setting("clinc150", BY_DOMAIN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--ablations", action="store_true", help="on CLINC150 by domain")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    names = ["clinc150-domain"] if options.ablations else options.only
    schemes = ABLATIONS if options.ablations else SCHEMES
    for name in names:
        setting = SETTINGS[name]
        if setting.data != "embedded" and not (SHARED_DATA / setting.data).is_dir():
            print(f"{name}: left out, {setting.data}/train.jsonl.gz is not beside the repository")
            continue
        compare(name, setting, schemes, range(1, options.seeds + 1), options.workers)


def compare(
    name: str, setting: Setting, schemes: tuple[str, ...], seeds: range, workers: int
) -> None:
    """Run one setting and print its table."""
    settings: dict[str, Any] = settings_of(setting.data)
    entries = read_schemes(",".join(_entry(scheme) for scheme in schemes))
    rows = measure(
        f"schemes-{name}", entries, [setting.partition], settings, seeds, CLIENTS, workers
    )
    print(f"\n{name}, {setting.partition.name}, {settings['num-server-rounds']} rounds")
    print("\n".join(markdown_table(headers(schemes[0], "accuracy"), [shown(row) for row in rows])))


def _entry(scheme: str) -> str:
    """Return what ``fedmoe compare --schemes`` takes: a name, or the file of an ablation."""
    file = REPOSITORY / "experiments" / f"{scheme}.toml"
    return str(file) if "-" in scheme else scheme


if __name__ == "__main__":
    main()
