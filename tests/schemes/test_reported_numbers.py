"""Whatever one client of ten reports of itself, it moves no scheme further than a usual one could.

Ten clients; nine change every value by about +1, and the tenth by −1. What it reports beside that
goes to what the wire allows. The guard's bounds let it count for a few usual clients at most, so
the model, and what all clients are told, go on the way of the nine, and about as far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from fedmoe_app import SCHEMES, ClientUpdate, ModelState, RoutingStats, Scheme
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.guard import STRENGTHS, Guard
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.schemes.base import flat_signals
from fedmoe_app.schemes.parts import Measured
from fedmoe_app.server.measuring import specs_of
from fedmoe_app.wire.spec import NumberSpec
from tests.toy import plan_of, toy_state, toy_update

CLIENTS, LIAR, KEYS = 10, 9, [*toy_state().experts]
EXAMPLES, STEPS = 10, 2.0
FAR = 0.7  # share of the way of the nine that a lie may take away, or add
Lie = Callable[[ClientUpdate], ClientUpdate]

# What a client says of itself, and the lie about it. None: nobody believes it, or it moves nothing.
OF_UPDATE: Mapping[str, Lie | None] = {
    "client": None,  # nodes are bound to it
    "num_examples": lambda own: replace(own, num_examples=10**8),
    "num_partitions": None,
    "changes": None,  # the guard's norms
    "routing": None,  # OF_ROUTING
    # More steps than the examples give are refused at the border: STEPS is as many as there can be.
    "metrics": lambda own: replace(own, metrics={"num-steps": 0.0, "train-loss": 1e6}),
    "codec": None,
    "placement": None,
    "server_round": None,
    "statistics": None,  # lies_of
    "counts_as": None,  # the guard's own
    "steps_as": None,
}
ONE = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])  # all in one expert
OF_ROUTING: Mapping[str, Mapping[str, Tensor]] = {
    "count": {"count": torch.full((2, 3), 10**8), "tokens": torch.full((2,), 3 * 10**8)},
    "prob": {"prob": ONE},
    "margin": {"margin": torch.full((2, 3), 1 / 3)},
    "peak": {"peak": torch.ones(2, 3)},
    "kl": {"kl": torch.full((2, 3), 1e3)},
    "trained": {"trained": torch.full((2, 3), 10**6)},
    "tokens": {"tokens": torch.full((2,), 10**9)},
    "region": {"region": torch.full((2, 3, 4), -1e3)},
    "sure of one": {"prob": ONE, "margin": ONE, "peak": ONE},
}


def test_every_number_of_a_reply_is_thought_of() -> None:
    """A new one needs its lie here, and if it weighs clients its bound in the guard."""
    assert OF_UPDATE.keys() == {entry.name for entry in fields(ClientUpdate)}
    assert OF_ROUTING.keys() - {"sure of one"} == {entry.name for entry in fields(RoutingStats)}


@pytest.mark.parametrize("name", SCHEMES)
def test_what_a_scheme_measures_has_a_bound(name: str) -> None:
    plan = plan_of(SCHEMES[name]())
    for name_sent, number in specs_of(plan.measured, with_map(toy_state())).items():
        assert number.mass or number.adds_up, f"{name_sent}: the guard does not bound it"
    for statistic in plan.measured_apart:
        assert type(statistic).bounded is not Measured.bounded, statistic


@pytest.mark.parametrize("name", SCHEMES)
def test_no_lie_about_itself_lets_a_client_count_for_many(name: str) -> None:
    scheme = SCHEMES[name]()
    numbers = specs_of(plan_of(scheme).measured, with_map(toy_state()))
    honest = after(scheme, numbers, lambda own: own)
    for lie, told in lies_of(numbers):
        for key, tensor in after(scheme, numbers, told).items():
            usual, own = honest[key].double(), tensor.double()
            way = float((own - usual).norm())
            assert way <= FAR * float(usual.norm()) + 1e-9, f"{name}, {lie}, {key}: {usual} {own}"


def after(scheme: Scheme, numbers: Mapping[str, NumberSpec], lie: Lie) -> dict[str, Tensor]:
    """How each tensor moves, and what is told, after a guarded round in which one lies."""
    updates = [usual(client, numbers) for client in range(CLIENTS)]
    updates[LIAR] = lie(updates[LIAR])
    guard, state = Guard(STRENGTHS["default"]), with_map(toy_state())
    sizes = {update.client: guard.size_of(update, numbers) for update in updates}
    updates, _ = guard.close([*map(guard.counted, updates)], sizes, ())
    plan, before = plan_of(scheme), dict(state.named())
    root = usual(0, numbers).changes if plan.needs_root else None
    outcome = aggregate(state, updates, plan, round_info(1, updates), root=root)
    moved = {key: tensor - before[key] for key, tensor in outcome.tensors}
    return moved | flat_signals(outcome.told)


def usual(client: int, numbers: Mapping[str, NumberSpec]) -> ClientUpdate:
    change = -1.0 if client == LIAR else 1 + client / 100
    update = toy_update(client, EXAMPLES, change, KEYS)
    update.changes.dense["map.weight"] = torch.full((2, 2), change)
    sent = {name: torch.full(number.shape, 1.0 + client / 100) for name, number in numbers.items()}
    regions = torch.arange(24.0).reshape(2, 3, 4) + client / 100
    metrics = {"num-steps": STEPS, "train-loss": 1.0}
    routing = replace(update.routing, region=regions)
    return replace(update, statistics=sent, metrics=metrics, routing=routing)


def with_map(state: ModelState) -> ModelState:
    """The toy state with a linear map."""
    state.dense["map.weight"] = torch.ones(2, 2)
    return state


def lies_of(numbers: Mapping[str, NumberSpec]) -> Iterator[tuple[str, Lie]]:
    for name, lie in OF_UPDATE.items():
        if lie is not None:
            yield name, lie
    for name, columns in OF_ROUTING.items():
        yield name, lambda own, c=columns: replace(own, routing=replace(own.routing, **c))
    for name, number in numbers.items():
        for value in (number.low, number.high):
            yield (
                f"{name} = {value}",
                lambda own, n=name, v=value: replace(
                    own, statistics={**own.statistics, n: torch.full_like(own.statistics[n], v)}
                ),
            )
