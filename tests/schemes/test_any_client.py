"""Any parts together on a real model: two clients train, the server combines, or it is refused.

Beside :mod:`tests.schemes.test_any_parts`, which draws the server's parts on toy tensors, this one
draws what needs a model: losses, logits, splits, what leaves a client, assigned experts, exchanges
without training, the reported model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe_app import Client, ClientUpdate, ConfigError, ModelState, Plan, Run, Server, Step
from fedmoe_app.aggregation.aggregate import aggregate, reported
from fedmoe_app.aggregation.streaming import replies_of, round_info
from fedmoe_app.client.round import ClientRound
from fedmoe_app.client.rows import client_rows, divided
from fedmoe_app.config.node import Node
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.layers import find_moe_layers, read_state, write_state
from fedmoe_app.schemes.average import LastModels, MovingAverage
from fedmoe_app.schemes.base import flat_signals
from fedmoe_app.schemes.closedhead import EstimateHead, FeatureSums, FixedHead
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.fcmoe import Consensus, Retention
from fedmoe_app.schemes.fedalign import GatePull, PrivateGates, Reference, Semantic
from fedmoe_app.schemes.feddecorr import Decorrelate
from fedmoe_app.schemes.fedexp import Extrapolated
from fedmoe_app.schemes.fedlmd import LabelMasking
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.fedntd import NotTrue
from fedmoe_app.schemes.fedopt import Momentum
from fedmoe_app.schemes.fedprox import Proximal
from fedmoe_app.schemes.fedrs import RestrictedSoftmax
from fedmoe_app.schemes.fedvls import PriorAdded, Suppression, VacantClasses
from fedmoe_app.schemes.flexmoe import BalancedFitness
from fedmoe_app.schemes.grammerge import GramWeighted
from fedmoe_app.schemes.hfedmoe import BottleneckInBatch, ByUsage
from fedmoe_app.schemes.leaveoneout import HeldBack, LeaveOneOut, TellHead
from fedmoe_app.schemes.localnoise import Bounded, Noise
from fedmoe_app.schemes.logitadjust import Calibrated, PriorAdjusted
from fedmoe_app.schemes.lorafreeze import FrozenA
from fedmoe_app.schemes.parts import ByExamples, Mean, PersonalCopy
from fedmoe_app.schemes.qfedavg import Fair
from fedmoe_app.schemes.robust import NearCentre, NearOthers, Trimmed
from fedmoe_app.schemes.scaffold import Control, ControlVariate
from fedmoe_app.server.assigning import Assignments
from fedmoe_app.server.measuring import info_of, moved, told_after
from fedmoe_app.tasks.setup import Setup, load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.homes import link_cache
from tests.invariant.runs import COMMON, make_material
from tests.schemes.test_any_parts import one, some
from tests.schemes.test_guards import Halves

CLIENTS = 2
HEAD = "score"
OF_HEAD = (FeatureSums(HEAD), "lda", 0.1, 2.0)
TELLS, ESTIMATES = TellHead(*OF_HEAD), EstimateHead(*OF_HEAD)
TERMS = (
    *(Proximal(), GatePull(), ControlVariate(), Decorrelate(0.1)),
    *(NotTrue(), LabelMasking(), VacantClasses(), Suppression(0.1)),
)
RULES = (Mean(), ByExamples(), Mean(3), Equal(), Trimmed(0.3), Extrapolated(), Fair())
RUN_KEYS = count()
# An example takes a third of a second: explaining a failure would take minutes.
QUICK = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)

clients = st.builds(
    Client,
    select=one((MostUsed(2, 8), BottleneckInBatch()), or_none=True),
    start_gates=one((PrivateGates(),), or_none=True),
    start_experts=one((Retention(),), or_none=True),
    loss=one((PriorAdjusted(), PriorAdded(), Calibrated(), RestrictedSoftmax()), or_none=True),
    terms=some(TERMS),
    logits=one((LeaveOneOut(HEAD),), or_none=True),
    split=one((HeldBack(0.5),), or_none=True),
    freeze=one((FixedHead(HEAD), FrozenA()), or_none=True),
    personal=one((PersonalCopy(), PersonalCopy(joint=True)), or_none=True),
    send=some((Bounded(1.0), Noise(0.01, True))),
)
servers = st.builds(
    Server,
    dense=one(RULES),
    gates=one(RULES),
    experts=one((*RULES, ByUsage(tau=0.2), Consensus(), Semantic(), GramWeighted())),
    assign=one((BalancedFitness(),), or_none=True),
    steps=some((Momentum(), Control(CLIENTS), Reference())),
    before=some((TELLS, ESTIMATES)),
    refresh=some((TELLS, ESTIMATES)),
    after=some((ESTIMATES,)),
    reported=some((MovingAverage(0.5), LastModels(2))),
    admit=one((NearCentre(), NearOthers()), or_none=True),
)


@dataclass(frozen=True, repr=False)
class World:
    """A tiny model, and what clients know of the run."""

    config: RunConfig
    setup: Setup
    label_names: tuple[str, ...]
    data_fingerprint: str
    state: ModelState

    def __repr__(self) -> str:
        """Not a page of tensors."""
        return "World()"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    material = make_material(tmp_path_factory.mktemp("material"))
    link_cache(tmp_path_factory.mktemp("home"))
    own: dict[str, Any] = {
        "model.name": str(material / "base"),
        "data.source": str(material / "texts-train.jsonl"),
        "data.test-source": str(material / "texts-test.jsonl"),
        "train.max-steps": 1,
    }
    config = make_config(**{**COMMON, **own})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(tmp_path_factory.mktemp("home")))
        data = server_data(config.data)
        setup = load_setup(config, data.label_names)
        assert setup.shape.head == HEAD
        state = read_state(setup.model, setup.layers)
        yield World(config, setup, data.label_names, data.fingerprint, state)


@dataclass
class Rounds:
    """A run of two clients under a plan."""

    world: World
    plan: Plan
    run_key: str
    assigned: Mapping[int, Tensor]

    def client(self, number: int, server_round: int, state: ModelState, told: Any) -> ClientRound:
        world, node = self.world, Node(number, number, CLIENTS, None)
        task = TrainTask(
            server_round,
            state,
            world.label_names,
            world.data_fingerprint,
            dict(told),
            run_key=self.run_key,
            assigned=self.assigned.get(number),
        )
        model = deepcopy(world.setup.model)  # a client's process loads one anew
        setup = replace(world.setup, model=model, layers=find_moe_layers(model))
        rows = client_rows(world.config, node, task, setup)
        write_state(setup.model, setup.layers, state)
        rows = divided(rows, self.plan.client.split, number)
        return ClientRound(world.config, node, task, self.plan, setup, rows)

    def trained(self, server_round: int, state: ModelState, told: Any) -> list[ClientUpdate]:
        rounds = (self.client(i, server_round, state, told) for i in range(CLIENTS))
        return [one_round.run() for one_round in rounds]

    def measured(
        self, server_round: int, state: ModelState, steps: Sequence[Step]
    ) -> tuple[ModelState, dict[str, Tensor]]:
        """An exchange without training: the state that it leaves, and what it tells."""
        if not steps:
            return state, {}
        sums = [self.client(i, server_round, state, {}).measure() for i in range(CLIENTS)]
        info = info_of(server_round, sums)
        state = moved(state, steps, info)
        return state, told_after(state, steps, info)


def run(world: World, plan: Plan) -> dict[str, Tensor]:
    """Two rounds with all that goes with them; return the reported values."""
    rounds = Rounds(world, plan, f"{next(RUN_KEYS):032x}", {})
    server = plan.server
    state, apart = rounds.measured(0, world.state, server.before)
    kept, of_reported, told = None, dict[str, Tensor](), dict[str, Tensor]()
    shown: dict[str, Tensor] = {}
    for number in (1, 2):
        updates = rounds.trained(number, state, apart | told)
        info = round_info(number, updates)
        found = aggregate(state, updates, plan, info, kept)
        state = ModelState()
        for key, tensor in found.tensors:
            state.insert(key, tensor)
        kept, told = found.state, flat_signals(found.told)
        book = Assignments.of(plan, world.setup.shape, None)
        if book is not None:
            book.renew(replies_of(updates))
            rounds.assigned = book.by_client
        state, again = rounds.measured(number, state, server.refresh)
        apart |= again
        shown, of_reported = reported(dict(state.named()), server.reported, info, of_reported)
    state, _ = rounds.measured(2, state, server.after)
    return shown | {f"end.{key}": tensor for key, tensor in state.named()}


def plan_or_reason(world: World, scheme: Halves) -> Plan | None:
    """The plan, or None if it is refused with what is wrong in it."""
    shape = world.setup.shape
    try:
        plan = Plan.of(scheme, shape)
        plan.check(Run(shape, task=world.config.data.task))
    except ConfigError as error:
        note(str(error))
        assert any(word in str(error) for word in ("signal", "keeps state", "assigns experts"))
        return None
    return plan


def mended(client: Client, server: Server) -> Halves:
    """Add who hears a signal, or tells it, where the other half has the other of the two."""
    for hears, tells in ((GatePull(), Reference()), (ControlVariate(), Control(CLIENTS))):
        if (hears in client.terms) != (tells in server.steps):
            client = replace(client, terms=(*dict.fromkeys((*client.terms, hears)),))
            server = replace(server, steps=(*dict.fromkeys((*server.steps, tells)),))
    told = TELLS in (*server.before, *server.refresh)
    if told and client.logits is None:
        client = replace(client, logits=LeaveOneOut(HEAD))
    if client.logits is not None and not told:
        server = replace(server, before=(*server.before, TELLS))
    if server.assign is not None and not isinstance(client.select, MostUsed):
        client = replace(client, select=MostUsed(2, 8))
    return Halves(client, server)


def check(world: World, scheme: Halves) -> None:
    plan = plan_or_reason(world, scheme)
    event("refused" if plan is None else "ran")
    if plan is None:
        return
    values = run(world, plan)
    assert {key.removeprefix("end.") for key in values} == dict(world.state.named()).keys()
    assert all(bool(tensor.isfinite().all()) for tensor in values.values())
    assert any(not t.equal(values[f"end.{k}"]) for k, t in dict(world.state.named()).items())


as_drawn, fitting = st.builds(Halves, clients, servers), st.builds(mended, clients, servers)


@pytest.mark.slow
@settings(QUICK, max_examples=100)
@given(as_drawn)
def test_any_parts_run_two_rounds_or_are_refused(world: World, scheme: Halves) -> None:
    check(world, scheme)


@pytest.mark.slow
@settings(QUICK, max_examples=200)
@given(fitting)
def test_parts_that_hear_what_is_told_run_two_rounds(world: World, scheme: Halves) -> None:
    check(world, scheme)
