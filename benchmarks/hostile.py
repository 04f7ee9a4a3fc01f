"""What a hostile client sends in place of its own update, for benchmarks of what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmoe_app import ClientUpdate, ModelState
from fedmoe_app.wire.bounds import TaskBounds

Others = Sequence[ClientUpdate]  # what the honest clients of the round have sent
Attack = Callable[[ClientUpdate, Others, TaskBounds], ClientUpdate]
_MOST = 9e3  # of a value: the server refuses more than 1e4
_MOST_SUM = 9e11  # of a sum of features: it refuses more than 1e12


def no_attack(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send what was trained."""
    return update


def scale(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send ten times as much, the other way."""
    return _scaled(update, -10)


def examples(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim data of its own without end, with all tokens that they can have; turn the sign."""
    lie = replace(_scaled(update, -1), num_examples=10**8, num_partitions=0)
    return _with_tokens(lie, bounds.tokens(10**8), bounds.top_k)


def forged(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim as many tokens as its examples can have, and a router that is sure; turn the sign."""
    routing = update.routing
    sure = replace(routing, margin=routing.prob, peak=torch.ones_like(routing.peak))
    lie = replace(update, routing=sure)
    return _with_tokens(_scaled(lie, -1), bounds.tokens(update.num_examples), bounds.top_k)


def sign(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Turn the sign."""
    return _scaled(update, -1)


def counts(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim more tokens than its examples can have; turn the sign."""
    return _with_tokens(_scaled(update, -1), 10**12, bounds.top_k)


def noise(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send Gaussian noise of thirty times the size."""
    generator = torch.Generator().manual_seed(update.num_examples)

    def draw(key: str, change: Tensor) -> Tensor:
        return 30 * change.std(correction=0) * torch.randn(change.shape, generator=generator)

    return _changed(update, draw)


def little(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send mean - 1.5 deviations of what the others sent (Baruch et al. 2019, arXiv:1902.06156)."""
    seen = [dict(other.changes.named()) for other in others]

    def worst(key: str, change: Tensor) -> Tensor:
        sent = [tensors[key] for tensors in seen if key in tensors]
        if len(sent) < 2:
            return -change
        rows = torch.stack(sent)  # [M, ...]
        return rows.mean(dim=0) - 1.5 * rows.std(dim=0)

    return _changed(update, worst)


def sideways(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Turn the sign, but go as far forward as back on the way that the others take together."""
    seen = [dict(other.changes.named()) for other in others]
    own = dict(update.changes.named())
    mean = {
        key: torch.stack([tensors[key] for tensors in seen if key in tensors]).mean(dim=0)
        for key in own
        if any(key in tensors for tensors in seen)
    }
    square = sum(float((way * way).sum()) for way in mean.values())
    along = sum(float((own[key] * way).sum()) for key, way in mean.items()) / (square or 1.0)
    turned = {key: along * mean.get(key, torch.zeros(())) - own[key] for key in own}
    before, now = (
        sum(float((change * change).sum()) for change in changes.values()) ** 0.5
        for changes in (own, turned)
    )
    return _changed(update, lambda key, change: turned[key] * (before / (now or 1.0)))


LABELS = "labels"  # the client trains honestly, on turned labels: see `turned`
ATTACKS: dict[str, Attack] = {
    "none": no_attack,
    "scale": scale,
    "examples": examples,
    "forged": forged,
    "sign": sign,
    LABELS: no_attack,
    "counts": counts,
    "noise": noise,
    "little": little,
    "sideways": sideways,
}


def gram(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim inputs of a thousand times the length, whose squares weigh a merge; turn the sign."""
    lie = _scaled(update, -1)
    return replace(lie, statistics=_times(update.statistics, 1e6))


def losses(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim the largest loss that there may be, by which q-FedAvg weighs; turn the sign."""
    return replace(
        _scaled(update, -1),
        statistics={
            name: torch.full_like(number, _MOST) if name.startswith("ReceivedLoss/") else number
            for name, number in update.statistics.items()
        },
    )


def brake(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Claim a change so long that q-FedAvg goes no step."""
    return replace(
        update,
        statistics={
            name: torch.full_like(number, 9e19) if name.startswith("SquaredChange/") else number
            for name, number in update.statistics.items()
        },
    )


def variates(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send control variates of a thousand times the length, the other way."""
    sent = {name: (-1e3 * each).clamp(-_MOST, _MOST) for name, each in update.statistics.items()}
    return replace(update, statistics=sent)


def drift(update: ClientUpdate, others: Others, bounds: TaskBounds) -> ClientUpdate:
    """Send control variates as long as the others' are, in the same direction each round."""
    sent = {}
    for name, each in update.statistics.items():
        lengths = [float(o.statistics[name].norm()) for o in others if name in o.statistics]
        generator = torch.Generator().manual_seed(len(name))
        way = torch.randn(each.shape, generator=generator)
        length = sum(lengths) / len(lengths) if lengths else float(each.norm())
        sent[name] = way * (length / float(way.norm()))
    return replace(update, statistics=sent)


def greedy_sums(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Claim ten thousand times as many examples of each class, all of other classes."""
    return _times(turned_sums(sums), 1e4)


def turned_sums(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Say of each class what is true of another; of a head's sums, whose rows are classes."""
    return {
        name: numbers if name.endswith("moment") else numbers.flip(0)
        for name, numbers in sums.items()
    }


# What is measured beside the changes, and by which scheme.
MEASURED: dict[str, Attack] = {
    "gram": gram,
    "losses": losses,
    "brake": brake,
    "variates": variates,
    "drift": drift,
}
OF_SCHEME = {
    "grammerge": ("gram",),
    "qfedavg": ("losses", "brake"),
    "scaffold": ("variates", "drift"),
}
HEAD_SUMS = {"turned sums": turned_sums, "greedy sums": greedy_sums}


def turned(label: int, classes: int) -> int:
    """Return the label that a client of the attack "labels" trains on."""
    return classes - 1 - label


def _times(numbers: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Multiply what is measured, within the ranges of its fields."""
    return {name: (factor * each).clamp(-_MOST_SUM, _MOST_SUM) for name, each in numbers.items()}


def _scaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    return _changed(update, lambda key, change: (factor * change).clamp(-_MOST, _MOST))


def _with_tokens(update: ClientUpdate, tokens: int, top_k: int) -> ClientUpdate:
    """Claim so many tokens a layer, spread over all experts."""
    routing = update.routing
    count = torch.full_like(routing.count, max(1, tokens * top_k // routing.count.shape[1]))
    seen = torch.full_like(routing.tokens, tokens)
    return replace(update, routing=replace(routing, tokens=seen, count=count))


def _changed(update: ClientUpdate, change: Callable[[str, Tensor], Tensor]) -> ClientUpdate:
    changes = ModelState()
    for key, tensor in update.changes.named():
        changes.insert(key, change(key, tensor))
    return replace(update, changes=changes)
