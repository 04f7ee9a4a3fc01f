"""Experts that the server assigns: the best in bounds, told or sent, and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fedmoe_app import (
    Assign,
    Client,
    ConfigError,
    ModelShape,
    ModelState,
    Plan,
    Reply,
    Run,
    Scheme,
    Server,
    make_scheme,
    read_metrics,
)
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.flexmoe import (
    BalancedFitness,
    FlexMoE,
    balanced_assignment,
    renewed_fitness,
)
from fedmoe_app.server.assigning import Assignments
from tests.conftest import make_config
from tests.invariant.runs import CHOSEN, GoldenRun
from tests.schemes.conftest import SharedRuns
from tests.toy import both_layers, toy_stats

SHAPE = ModelShape(2, 3, 1, 4)


def reply(client: int, prob: Sequence[float], budget: int = 1) -> Reply:
    stats = replace(toy_stats([]), prob=both_layers(prob))
    return Reply(client, 1.0, 1.0, stats, ModelState(), expert_budget=budget)


# -- the assignment ----------------------------------------------------------------------------


def test_two_clients_that_like_one_expert_best() -> None:
    """0.6 + 0.3 beats 0.7 + 0.2: who loses less by it takes the second best."""
    fitness = torch.tensor([[0.7, 0.2], [0.6, 0.3]])
    assert balanced_assignment(fitness, [1, 1], 0.0).tolist() == [[True, False], [False, True]]
    # With a slack of 1 both get what they like best.
    assert balanced_assignment(fitness, [1, 1], 1.0).tolist() == [[True, False], [True, False]]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0, 2), st.integers(0, 99), st.data())
def test_no_other_assignment_in_the_bounds_is_better(
    clients: int, experts: int, slack: float, seed: int, data: st.DataObject
) -> None:
    """Against all of them, one by one."""
    budgets = [data.draw(st.integers(1, experts)) for _ in range(clients)]
    fitness = torch.rand(clients, experts, generator=torch.Generator().manual_seed(seed))
    found = balanced_assignment(fitness, budgets, slack)
    assert found.sum(dim=1).tolist() == budgets
    mean = sum(budgets) / experts
    low, high = int((1 - slack) * mean), -int(-(1 + slack) * mean // 1)

    def allowed(loads: Tensor) -> bool:
        return bool((loads >= low).all() and (loads <= high).all())

    assert allowed(found.sum(dim=0))
    best = 0.0
    for rows in product(*(combinations(range(experts), budget) for budget in budgets)):
        mask = torch.zeros(clients, experts, dtype=torch.bool)
        for i, row in enumerate(rows):
            mask[i, list(row)] = True
        if allowed(mask.sum(dim=0)):
            best = max(best, float(fitness[mask].sum()))
    assert float(fitness[found].sum()) == pytest.approx(best)


def test_fitness_follows_the_router() -> None:
    """½·(½, ½) + ½·(0.8, 0.2)."""
    found = renewed_fitness(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2]]), 0.5)
    assert found.flatten().tolist() == pytest.approx([0.65, 0.35])


def test_experts_that_a_node_did_not_hold_keep_their_fitness() -> None:
    """Only the ½ of the first two is divided anew: ½·¼ + ½·½·0.8 and ½·¼ + ½·½·0.2."""
    before = torch.full((1, 4), 0.25)
    found = renewed_fitness(before, torch.tensor([[0.8, 0.2, 0.0, 0.0]]), 0.5)
    assert found.flatten().tolist() == pytest.approx([0.325, 0.175, 0.25, 0.25])


def test_all_known_clients_are_assigned_and_the_state_is_whole() -> None:
    part = BalancedFitness(decay=0.0)
    first, state = part.assign([reply(0, [0.6, 0.3, 0.1]), reply(1, [0.5, 0.4, 0.1])], {})
    # Every expert but one: 0.6 + 0.4 is the most.
    assert {c: e[0].tolist() for c, e in first.items()} == {
        0: [True, False, False],
        1: [False, True, False],
    }
    later, state = part.assign([reply(2, [0.9, 0.1, 0.0])], state)
    assert later.keys() == {0, 1, 2}
    assert torch.stack([*later.values()]).sum(dim=0).tolist() == [[1, 1, 1]] * 2
    assert state.keys() == {f"{kind}.{c}" for kind in ("fitness", "budget") for c in range(3)}


# -- the seam ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says(Assign):
    """Assigns what it is told to; also a part of somebody's own."""

    what: str

    def assign(self, replies: Sequence[Reply], state: Mapping[str, Tensor]) -> Any:
        assert all(not dict(reply.changes.named()) for reply in replies)
        found: dict[str, Any] = {
            "nothing": None,
            "a list": ([], {}),
            "another model": ({0: torch.ones(1, 3, dtype=torch.bool)}, {}),
            "numbers": ({0: torch.ones(2, 3)}, {}),
            "too many": ({0: torch.ones(2, 3, dtype=torch.bool)}, {}),
            "none": ({0: torch.zeros(2, 3, dtype=torch.bool)}, {}),
            "no state": ({}, {"a": 1.0}),
        }
        return found[self.what]


@dataclass(frozen=True)
class Own(Scheme):
    what: str
    chooses: bool = True

    def client(self, model: ModelShape) -> Client:
        return Client(select=MostUsed(2)) if self.chooses else Client()

    def server(self, model: ModelShape) -> Server:
        return Server(assign=Says(self.what))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nothing", "Says.assign: returned None: must be"),
        ("a list", "its experts are a list"),
        ("another model", r"shape \[1, 3\].* for client 0: must be bool of shape \[2, 3\]"),
        ("numbers", "float32 for client 0: must be bool"),
        ("too many", "3 experts of MoE layer 0 for client 0: must be 1 to 2"),
        ("none", "0 experts of MoE layer 0"),
        ("no state", "its state holds 1.0 under 'a'"),
    ],
)
def test_what_cannot_be_assigned_names_the_part_and_changes_nothing(what: str, reason: str) -> None:
    book = Assignments.of(Plan.of(Own(what), SHAPE), SHAPE, None)
    assert book is not None
    with pytest.raises(ValueError, match=reason):
        book.renew([reply(0, [0.5, 0.3, 0.2], budget=2)])
    assert book.state() == {}


def test_who_assigns_must_let_clients_choose_until_then() -> None:
    with pytest.raises(ConfigError, match="Says: assigns experts, so Client.select must be a Once"):
        Plan.of(Own("nothing", chooses=False), SHAPE)
    with pytest.raises(ConfigError, match='rounds = "buffered": the server assigns'):
        Plan.of(FlexMoE(2), SHAPE).check(Run(SHAPE, buffered=True))


@pytest.mark.parametrize(
    "wrong", [{"experts": 0}, {"experts": 4}, {"decay": 1.0}, {"slack": -1}, {"usage_examples": 0}]
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"flexmoe: {min(wrong)} = "):
        make_scheme(make_config(**{"scheme": "flexmoe", "scheme-args": json.dumps(wrong)})).check(
            Run(SHAPE)
        )


# -- whole runs --------------------------------------------------------------------------------


ARGS = {"scheme": "flexmoe", "scheme-args": '{"experts": 2}'}


def assigned(results: Path, server_round: int) -> dict[int, Tensor]:
    folder = results / "checkpoints" / f"round-{server_round:05d}"
    found = load_file(folder / "server-state.safetensors")
    return {int(k.rpartition(".")[2]): t for k, t in found.items() if k.startswith("assign.to.")}


@pytest.mark.parametrize("mode", [{}, CHOSEN], ids=["all", "chosen"])
def test_clients_train_what_they_are_assigned_and_a_resumed_run_goes_on(
    mode: Mapping[str, Any], runs: SharedRuns
) -> None:
    run = GoldenRun({**ARGS, **mode, "keep-checkpoints": 9, "keep-client-state": True})
    results, again = runs.of(run), runs.resumed(run, after=2)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 4
    for server_round in (2, 3):
        before, line = assigned(results, server_round - 1), lines[server_round]
        assert before.keys() == {0, 1, 2}
        loads = torch.stack([*before.values()]).sum(dim=0)  # [L, E]
        assert int(loads.max() - loads.min()) <= 1
        trained = torch.tensor(line["routing"]["trained"]) > 0  # [N, L, E]
        for client, experts in before.items():
            assert not (trained[client] & ~experts).any()
    for name in ("state", "server-state"):
        mine, other = (
            load_file(folder / "checkpoints" / "round-00003" / f"{name}.safetensors")
            for folder in (results, again)
        )
        assert mine.keys() == other.keys()
        assert all(mine[key].equal(other[key]) for key in mine), name


def test_a_node_of_a_smaller_budget_is_assigned_fewer(runs: SharedRuns) -> None:
    run = GoldenRun({**ARGS, "keep-checkpoints": 9}, nodes={1: {"expert-budget": 1}})
    found = assigned(runs.of(run), 2)
    assert {c: int(e.sum(dim=1).max()) for c, e in found.items()} == {0: 2, 1: 1, 2: 2}
