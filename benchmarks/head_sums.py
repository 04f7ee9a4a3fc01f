"""A head in closed form under attack: what the guard costs, and what one liar of ten can do.

    python -m benchmarks.head_sums [cost] [attacks] [rare]

The features are those of the embedded task by a model after three rounds, made once, in minutes.
They do not depend on how examples are split afterwards, so that many splits cost seconds. The head
is LDA on sums that ten clients send; it is scored on a fifth of the examples, which no client has.

The liar has as much data as the median client and knows the features of all. **turned**: the sums
of its own examples, each class under another's name. **greedy**: ten thousand times these.
**spent**: the worst of some lies that spend all that the guard lets one have (:func:`_spent`).

**A rare class** is one that a single honest client has: the others' examples of it are left out.
With the liar it has two holders, so that no median bounds its mean. The liar claims all that may
count as its examples of this class, at the mean of another class, halfway between two others, at
the mean of all, or at another's as long as the guard lets it be: the worst place of each kind.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cells import print_markdown, run_config
from benchmarks.hostile import greedy_sums, turned_sums
from fedmoe_app import run_in_process
from fedmoe_app.aggregation.guard import STRENGTHS, Guard
from fedmoe_app.config.paths import home
from fedmoe_app.schemes.closedhead import FeatureSums, Sums, class_means, lda_head
from fedmoe_app.schemes.views import Outputs

CLIENTS, ROUNDS, SEEDS = 10, 3, 20
ALPHAS = (0.1, 0.5)
RARE_SEEDS, RARE_LABELS = 3, (0, 3, 5)
SUMS = FeatureSums("score")
Numbers = Mapping[str, Tensor]
Data = tuple[Tensor, Tensor]  # features [n, D] float64, labels [n]


# -- features ----------------------------------------------------------------------------------


def features() -> Data:
    """Return features and labels of all training examples, by a model after some rounds."""
    path = home() / "benchmarks" / "head_sums" / "features.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_of_a_run(), path)
    found: Data = torch.load(path)
    return found


def _of_a_run() -> Data:
    from fedmoe_app.client import round as client_round

    found: list[Data] = []
    real = client_round.sums_of_outputs

    def noted(model: Any, task: Any, rows: Any, batch_size: int, wanted: Any) -> Any:
        seen: list[Tensor] = []
        sums = real(model, task, rows, batch_size, wanted, seen.append)
        found.append((torch.cat(seen), torch.tensor([int(row["labels"]) for row in rows])))
        return sums

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(client_round, "sums_of_outputs", noted),
    ):
        settings = {"head.closed-form": "after", "num-server-rounds": ROUNDS, "data.alpha": 0.5}
        run_in_process(run_config({**settings, "output-dir": folder}), CLIENTS)
    return torch.cat([f for f, _ in found]), torch.cat([labels for _, labels in found])


def split(data: Data, alpha: float, seed: int) -> tuple[list[Data], Data]:
    """Return the clients' examples by Dirichlet, the median one's last, and those of the test."""
    f, labels = data
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(f), generator=generator)
    test, train = order[: len(f) // 5], order[len(f) // 5 :]
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    shares = torch.distributions.Dirichlet(torch.full((CLIENTS,), alpha)).sample((classes,))
    owner = torch.multinomial(shares[labels[train]], 1).squeeze(1)
    rows = sorted((train[owner == i] for i in range(CLIENTS)), key=len)
    rows = [*rows[:5], *rows[6:], rows[5]]
    return [(f[own], labels[own]) for own in rows], (f[test], labels[test])


def sent(data: Data, classes: int) -> dict[str, Tensor]:
    """Return what a client sends of its examples."""
    f, labels = data
    found = SUMS.of_output(Outputs(f, torch.zeros(len(f), classes), labels))
    return {name: tensor.float() for name, tensor in found.items()}


# -- heads -------------------------------------------------------------------------------------


def bounded(parts: Sequence[Numbers], guard: str) -> list[Numbers]:
    """Return what the guard leaves of the clients' sums."""
    if guard not in STRENGTHS:
        return list(parts)
    kept = SUMS.bounded(parts, Guard(STRENGTHS[guard]).limits(range(len(parts))))
    return [each.numbers for each in kept]


def total(parts: Sequence[Numbers]) -> Sums:
    """Add up clients' sums."""
    counts, f, upper = (
        torch.stack([part[name].double() for part in parts]).sum(dim=0)
        for name in ("counts", "features", "moment")
    )
    row, column = torch.triu_indices(f.shape[1], f.shape[1])
    moment = torch.zeros(f.shape[1], f.shape[1], dtype=torch.float64)
    moment[row, column] = moment[column, row] = upper
    return Sums(counts, f, moment)


def accuracy(parts: Sequence[Numbers], test: Data) -> float:
    """Return the accuracy of the head of these sums, in percent."""
    head = lda_head(total(parts), 0.1, False)
    return 100 * float(((test[0] @ head.weight.T).argmax(1) == test[1]).double().mean())


def _spent(honest: Sequence[Numbers], guard: str) -> Iterator[dict[str, Tensor]]:
    """Yield lies as large as the guard lets one be.

    k classes by another's name, of one length: examples that are all the mean of that class. And
    honest means with a scatter along the way that tells most classes apart, to hide it.
    """
    limits, pooled = STRENGTHS[guard], total(honest)
    means, classes = class_means(pooled), len(pooled.counts)
    most = int(limits.share * statistics.median(float(part["counts"].sum()) for part in honest))
    for k in (2, classes // 2, classes):
        for length in (1.0, limits.length):
            counts = torch.zeros(classes, dtype=torch.float64)
            counts[:k] = most // k
            yield _of(counts, length * means.roll(1, 0))
    contrast = torch.linalg.svd(means - means.mean(dim=0)).Vh[0]  # [D]
    counts = torch.full((classes,), most // classes, dtype=torch.float64)
    yield _of(counts, means, most * pooled.moment.trace() / 10 * torch.outer(contrast, contrast))


def _places(honest: Sequence[Numbers], label: int, guard: str) -> Iterator[tuple[str, Tensor]]:
    """Yield where a liar may put the mean of a class that it owns."""
    pooled = total(honest)
    means, of_all = class_means(pooled), pooled.features.sum(dim=0) / pooled.counts.sum()
    row, column = torch.triu_indices(means.shape[1], means.shape[1])
    lengths = [
        float(part["moment"][row == column].sum() / part["counts"].sum()) ** 0.5
        for part in honest
        if part["counts"].sum()
    ]
    longest = STRENGTHS[guard].length * statistics.median(lengths)
    others = [mean for own, mean in enumerate(means) if own != label]
    yield "at all's", of_all
    for i, mean in enumerate(others):
        yield "at another's", mean
        yield "halfway", (mean + others[(i + 1) % len(others)]) / 2
        yield "long", longest * mean / mean.norm()


def _of(counts: Tensor, means: Tensor, within: Tensor | float = 0.0) -> dict[str, Tensor]:
    """Return sums of so many examples around class means."""
    rows = counts[:, None] * means
    row, column = torch.triu_indices(means.shape[1], means.shape[1])
    moment = (rows.T @ means + within)[row, column]
    found = {"counts": counts, "features": rows, "moment": moment}
    return {name: tensor.float() for name, tensor in found.items()}


# -- tables ------------------------------------------------------------------------------------


def cost(data: Data, alpha: float) -> None:
    """Print the honest range of what is bounded, and what the bounds cost."""
    classes = int(data[1].max()) + 1
    most, lengths, rows = [], [], []
    gained: dict[str, list[float]] = {guard: [] for guard in STRENGTHS}
    shrunk = dict.fromkeys(STRENGTHS, 0)
    for seed in range(SEEDS):
        clients, test = split(data, alpha, seed)
        parts = [sent(own, classes) for own in clients]
        sizes = [len(f) for f, _ in clients]
        most.append(max(sizes) / statistics.median(sizes))
        norms = [float(f.square().sum(1).mean().sqrt()) for f, _ in clients if len(f)]
        lengths += [norm / statistics.median(norms) for norm in norms]
        plain = accuracy(parts, test)
        for guard in STRENGTHS:
            left = bounded(parts, guard)
            shrunk[guard] += sum(mine is not its for mine, its in zip(left, parts, strict=True))
            gained[guard].append(accuracy(left, test) - plain)
    print(
        f"\nNobody lies, Dirichlet {alpha}, {SEEDS} splits: the largest client has "
        f"{min(most):.1f} to {max(most):.1f} medians of examples, lengths are "
        f"{min(lengths):.4f} to {max(lengths):.4f} of the median's.\n"
    )
    for guard, points in gained.items():
        error = statistics.stdev(points) / SEEDS**0.5
        worst = f"{min(points):+.1f}"
        mean = f"{statistics.fmean(points):+.2f} ± {error:.2f}"
        rows.append([guard, mean, worst, f"{shrunk[guard]} of {SEEDS * CLIENTS}"])
    print_markdown(["guard", "points", "worst split", "sums that shrink"], rows)


def attacks(data: Data, alpha: float) -> None:
    """Print what each lie costs under each guard, mean over the splits."""
    classes = int(data[1].max()) + 1
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(SEEDS):
        clients, test = split(data, alpha, seed)
        *honest, own = [sent(each, classes) for each in clients]
        for guard in ("off", *STRENGTHS):
            plain = accuracy(bounded([*honest, own], guard), test)
            lies = {"turned": [turned_sums(own)], "greedy": [greedy_sums(own)]}
            if guard in STRENGTHS:
                lies["spent"] = list(_spent(honest, guard))
            found.setdefault((guard, "none"), []).append(plain)
            for name, all_of_it in lies.items():
                worst = min(accuracy(bounded([*honest, lie], guard), test) for lie in all_of_it)
                found.setdefault((guard, name), []).append(plain - worst)
    print(f"\nOne of ten lies, Dirichlet {alpha}, {SEEDS} splits; points lost:\n")
    names = ("none", "turned", "greedy", "spent")
    rows = []
    for guard in ("off", *STRENGTHS):
        cells = [found.get((guard, name)) for name in names]
        rows.append([guard, *(f"{statistics.fmean(c):.1f}" if c else "" for c in cells)])
    print_markdown(["guard", *names], rows)


def rare(data: Data, alpha: float, guard: str = "default") -> None:
    """Print what a lie about a class costs that one honest client has, in all and of the others."""
    classes = int(data[1].max()) + 1
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(RARE_SEEDS):
        clients, test = split(data, alpha, seed)
        for label in RARE_LABELS:
            *honest, own = [sent(each, classes) for each in _held_by_one(clients, label)]
            most = STRENGTHS[guard].share * statistics.median(
                float(part["counts"].sum()) for part in honest
            )
            others = test[0][test[1] != label], test[1][test[1] != label]
            plain = [accuracy(bounded([*honest, own], guard), rows) for rows in (test, others)]
            worst: dict[str, tuple[float, float]] = {}
            for place, mean in _places(honest, label, guard):
                only = torch.nn.functional.one_hot(torch.tensor(label), classes).double()
                lie = _of(int(most) * only, only[:, None] * mean)
                left = bounded([*honest, lie], guard)
                lost, of_others = (
                    before - accuracy(left, rows)
                    for before, rows in zip(plain, (test, others), strict=True)
                )
                worst[place] = max(worst.get(place, (lost, of_others)), (lost, of_others))
            for place, losses in worst.items():
                found.setdefault(place, []).append(losses)
    cases = RARE_SEEDS * len(RARE_LABELS)
    print(f"\nA lie about a class of one honest client, Dirichlet {alpha}, {cases} cases:\n")
    rows = [
        [place, *(f"{statistics.fmean(each):.1f}" for each in zip(*losses, strict=True))]
        for place, losses in found.items()
    ]
    print_markdown(["its mean", "points lost", "of the other classes"], rows)


def _held_by_one(clients: Sequence[Data], label: int) -> list[Data]:
    """Leave out a class at all but the client, not the last, that has most of it."""
    counts = [int((labels == label).sum()) for _, labels in clients[:-1]]
    holder = counts.index(max(counts))
    return [
        own if i == holder else (own[0][own[1] != label], own[1][own[1] != label])
        for i, own in enumerate(clients)
    ]


def main() -> None:
    """Print all tables, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="cost, attacks, rare")
    asked = parser.parse_args().tables or ("cost", "attacks", "rare")
    torch.set_num_threads(1)
    data = features()
    for alpha in ALPHAS:
        for name, table in (("cost", cost), ("attacks", attacks)):
            if name in asked:
                table(data, alpha)
    if "rare" in asked:
        rare(data, ALPHAS[1])


if __name__ == "__main__":
    main()
