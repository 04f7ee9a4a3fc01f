"""Any parts together: a round has the same bits streamed or waited, or is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedmoe_app import Client, ClientUpdate, ConfigError, ModelState, Plan, Server
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.streaming import RunningSums, replies_of, round_info
from fedmoe_app.schemes.base import flat_signals, signals_of
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.fcmoe import Consensus, Kappa, Retention
from fedmoe_app.schemes.fedalign import ByConsistency, GatePull, PrivateGates, Reference, Semantic
from fedmoe_app.schemes.feddyn import Dual, Dynamic
from fedmoe_app.schemes.fedexp import Extrapolated
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.fednova import ByStep
from fedmoe_app.schemes.fedopt import Adaptive, Momentum
from fedmoe_app.schemes.fedprox import Proximal
from fedmoe_app.schemes.hfedmoe import BottleneckInBatch, ByPreference, ByUsage, SelectionRatio
from fedmoe_app.schemes.parts import ByExamples, Mean, PersonalCopy
from fedmoe_app.schemes.qfedavg import Fair
from fedmoe_app.schemes.robust import CentredClip, NearMost, Trimmed
from fedmoe_app.schemes.scaffold import Control, ControlVariate
from tests.aggregation.test_store import measured, updates
from tests.schemes.test_guards import Halves
from tests.toy import plan_of, toy_state

ANYWHERE = (
    *(Mean(), Mean("members"), ByExamples(), Equal(), ByStep(), Fair(), Extrapolated()),
    *(Trimmed(0.3), NearMost(), CentredClip()),
)
OF_GATES = (*ANYWHERE, ByPreference(0.2), ByConsistency())
OF_EXPERTS = (*ANYWHERE, ByUsage(tau=0.2), Consensus(), Consensus(project=False), Semantic())
STEPS = (Momentum(), Adaptive(), Adaptive(yogi=True), Dual(0.1, 5), Control(5), Reference())
TERMS = (Proximal(), GatePull(), Dynamic(), ControlVariate())


def one(parts: Any, *, or_none: bool = False) -> st.SearchStrategy[Any]:
    return st.sampled_from((None, *parts) if or_none else parts)


def some(parts: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(parts), max_size=3, unique=True).map(tuple)


halves = st.builds(
    Halves,
    st.builds(
        Client,
        select=one((MostUsed(), BottleneckInBatch()), or_none=True),
        start_gates=one((PrivateGates(),), or_none=True),
        start_experts=one((Retention(),), or_none=True),
        terms=some(TERMS),
        personal=one((PersonalCopy(),), or_none=True),
    ),
    st.builds(
        Server,
        dense=one(ANYWHERE),
        gates=one(OF_GATES),
        experts=one(OF_EXPERTS),
        steps=some(STEPS),
        probes=some((Kappa(), SelectionRatio())),
    ),
)


def plan_or_reason(scheme: Halves) -> Plan | None:
    try:
        return plan_of(scheme)
    except ConfigError as error:
        assert "signal" in str(error) or "keeps state" in str(error)
        return None


def taken(plan: Plan, given: list[ClientUpdate], number: int) -> tuple[RunningSums, Any]:
    """Sums of the first clients, and updates from which these are gone."""
    sums = RunningSums(plan.server, experts=True, values=toy_state())
    rest = list(given)
    for position, reply in enumerate(replies_of(given[:number])):
        sums.add(reply)
        rest[position] = replace(given[position], changes=sums.rest_of(reply.changes))
    return sums, rest


def tensors(values: ModelState, plan: Plan, given: Any, **others: Any) -> dict[str, torch.Tensor]:
    return dict(aggregate(values, given, plan, round_info(1, given), **others).tensors)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(halves, st.integers(0, 50), st.integers(1, 5))
def test_streamed_and_waited_are_the_same_bits(scheme: Halves, seed: int, number: int) -> None:
    plan = plan_or_reason(scheme)
    assume(plan is not None)
    assert plan is not None
    given = measured(updates(seed))
    waited = tensors(toy_state(), plan, given)
    assert waited.keys() == dict(toy_state().named()).keys()
    assert all(bool(tensor.isfinite().all()) for tensor in waited.values())
    sums, rest = taken(plan, given, number)
    streamed = tensors(toy_state(), plan, rest, sums=sums)
    assert all(torch.equal(streamed[name], waited[name]) for name in waited)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(halves, st.integers(0, 50))
def test_state_goes_in_and_out_as_a_value(scheme: Halves, seed: int) -> None:
    """The same state twice gives the same; nothing is left behind in a part."""
    plan = plan_or_reason(scheme)
    assume(plan is not None)
    assert plan is not None
    given, values = measured(updates(seed)), toy_state()
    first = aggregate(values, given, plan, round_info(1, given))
    copy = {name: tensor.clone() for name, tensor in first.state.items()}
    runs = [aggregate(values, given, plan, round_info(2, given), first.state) for _ in range(2)]
    assert all(torch.equal(tensor, copy[name]) for name, tensor in first.state.items())
    one, other = (dict(run.tensors) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert runs[0].state.keys() == copy.keys() == plan.initial_state(dict(values.named())).keys()
    flat = flat_signals(runs[0].told)
    assert flat_signals(signals_of(flat)).keys() == flat.keys()
