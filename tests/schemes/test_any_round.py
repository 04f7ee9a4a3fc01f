"""Any parts together train a round on a real model, or are refused before it with a reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe_app import Client, ConfigError, LocalStep, Server
from fedmoe_app.schemes.average import LastModels, MovingAverage
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.fcmoe import Consensus, Retention
from fedmoe_app.schemes.fedalign import GatePull, PrivateGates, Reference, Semantic
from fedmoe_app.schemes.feddecorr import Decorrelate
from fedmoe_app.schemes.feddyn import Dual, Dynamic
from fedmoe_app.schemes.fedlmd import LabelMasking
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.fedopt import Momentum
from fedmoe_app.schemes.fedprox import Proximal
from fedmoe_app.schemes.fedrs import RestrictedSoftmax
from fedmoe_app.schemes.fedvls import PriorAdded, Suppression, VacantClasses
from fedmoe_app.schemes.flexmoe import BalancedFitness
from fedmoe_app.schemes.globalbalance import GlobalBalance, TellShares
from fedmoe_app.schemes.grammerge import GramWeighted
from fedmoe_app.schemes.hfedmoe import BottleneckInBatch
from fedmoe_app.schemes.leaveoneout import HeldBack
from fedmoe_app.schemes.localnoise import Bounded, Noise
from fedmoe_app.schemes.logitadjust import Calibrated, PriorAdjusted
from fedmoe_app.schemes.parts import ByExamples, Freeze, Logits, Mean, PersonalCopy
from fedmoe_app.schemes.robust import NearCentre, NearOthers
from fedmoe_app.schemes.scaffold import Control, ControlVariate
from tests.invariant.runs import make_material
from tests.schemes.one_round import DRAWN, Drawn, config_of, play
from tests.schemes.test_any_parts import one, some


@dataclass(frozen=True)
class Cooled(Logits):
    """Half the logits, pulled towards what the features were."""

    def logits(self, step: LocalStep) -> Tensor:
        looked_back = step.recalled.numel() if step.recalled_round >= 0 else 0
        return step.logits / 2 + 0 * step.features.sum() + 0 * looked_back


@dataclass(frozen=True)
class HeldGates(Freeze):
    """Gates are not trained."""

    def frozen(self, key: str, server_round: int) -> bool:
        return ".gate." in key


LOSSES = (PriorAdjusted(), Calibrated(), RestrictedSoftmax(), PriorAdded())
TERMS = (Proximal(), VacantClasses(), Suppression(0.005), LabelMasking(), Decorrelate())
# What tells and what hears; the last tells nobody.
PAIRS: tuple[tuple[Any, Any], ...] = (
    (GatePull(), Reference()),
    (ControlVariate(), Control(2)),
    (GlobalBalance(), TellShares()),
    (Dynamic(), Dual(0.1, 2)),
    (None, Momentum()),
    (None, TellShares()),
)
# Who chooses on the client, and who assigns on the server; the last chooses too late for it.
CHOICES = (
    *((None, None), (MostUsed(), None), (BottleneckInBatch(), None)),
    *((MostUsed(), BalancedFitness()), (BottleneckInBatch(), BalancedFitness())),
)
RULES = (Mean(), Mean("members"), ByExamples(), Equal())
SENDS = (Bounded(1.0), Noise(0.01, seeded=True), Bounded(0.1))
# How refusals begin; each names the part.
REASONS = ("signal", "keeps state", "assigns experts", "nobody trains")

EXAMPLES = 12

clients = st.builds(
    Client,
    start_gates=one((PrivateGates(),), or_none=True),
    start_experts=one((Retention(),), or_none=True),
    loss=one(LOSSES, or_none=True),
    terms=some(TERMS),
    logits=one((Cooled(),), or_none=True),
    split=one((HeldBack(0.2),), or_none=True),
    freeze=one((HeldGates(),), or_none=True),
    personal=one((PersonalCopy(),), or_none=True),
    send=some(SENDS),
)
servers = st.builds(
    Server,
    dense=one(RULES),
    gates=one(RULES),
    experts=one((*RULES, GramWeighted(), Consensus(), Semantic())),
    reported=some((MovingAverage(), LastModels(2))),
    admit=one((NearCentre(), NearOthers()), or_none=True),
)


@st.composite
def halves(draw: st.DrawFn) -> tuple[Client, Server]:
    """Two halves of which most fit each other."""
    pairs, (select, assign) = draw(some(PAIRS)), draw(one(CHOICES))
    client, server = draw(clients), draw(servers)
    heard = tuple(term for term, _ in pairs if term is not None)
    told = tuple(step for _, step in pairs)
    return (
        replace(client, select=select, terms=client.terms + heard),
        replace(server, assign=assign, steps=told),
    )


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("material")
    return config_of(make_material(folder), scheme=DRAWN)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(halves())
def test_any_parts_train_a_round_or_are_refused(
    flat: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given_halves: tuple[Client, Server]
) -> None:
    monkeypatch.setattr(Drawn, "halves", given_halves)
    try:
        played = play(flat)
    except ConfigError as error:
        assert any(reason in str(error) for reason in REASONS)
        return
    assert played.after.keys() == played.before.keys() == played.reported.keys()
    for values in (played.after, played.reported):
        assert all(bool(tensor.isfinite().all()) for tensor in values.values())
    assert any(not tensor.equal(played.before[key]) for key, tensor in played.after.items())
