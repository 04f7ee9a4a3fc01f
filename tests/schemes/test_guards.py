"""Nothing that a scheme says is lost: it is called, or refused with what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import (
    BlockUpdates,
    Client,
    Combination,
    ConfigError,
    FCMoE,
    FedAlignMoE,
    FedMoE,
    FedProx,
    HFedMoE,
    InBatch,
    Keeps,
    LocalStep,
    Mean,
    ModelShape,
    Now,
    Once,
    Plan,
    Scheme,
    Server,
    Signal,
    Step,
    TaskLoss,
    Telling,
    Together,
    Trained,
    Weighted,
    WeightTerm,
)
from fedmoe_app.schemes.fcmoe import Consensus
from fedmoe_app.schemes.fedprox import Proximal
from fedmoe_app.schemes.parts import parts_in
from fedmoe_app.schemes.scaffold import Control
from tests.schemes.parts_at_work import combined
from tests.toy import fold_toy, own_update, plan_of, toy_state

TRAINED = {(layer, e): [0.25, 0.5, -1.0] for layer in range(2) for e in range(3)}
UPDATES = [own_update(0, 1, TRAINED), own_update(1, 3, TRAINED)]


@dataclass(frozen=True)
class Nothing(Together):
    """Moves nothing, and is told apart by it."""

    def combine(self, updates: BlockUpdates) -> Tensor:
        return torch.zeros(3)


@pytest.mark.parametrize(
    "scheme",
    [
        FCMoE(importance=False, projection=False, retention="none"),
        FedAlignMoE(experts="index"),
        Combination(experts=FedMoE()),
    ],
    ids=["fcmoe", "fedalign", "combine"],
)
def test_a_rule_in_a_subclass_is_called_whatever_is_switched_off(scheme: Scheme) -> None:
    """These three overrides were ignored in silence as long as schemes were hooks."""

    class Own(type(scheme)):  # type: ignore[misc]
        def server(self, model: ModelShape) -> Server:
            return replace(super().server(model), experts=Nothing())

    own = Own(**{name: getattr(scheme, name) for name in scheme.__dataclass_fields__})
    assert fold_toy(own, UPDATES).experts[0, 0]["up"].tolist() == [1.0, 1.0]
    assert fold_toy(scheme, UPDATES).experts[0, 0]["up"].tolist() == [1.25, 1.5]


def test_an_override_in_a_subclass_of_a_part_is_called() -> None:
    calls: list[int] = []

    @dataclass(frozen=True)
    class Mine(Consensus):
        def weights(self, updates: BlockUpdates) -> Tensor:
            calls.append(len(updates.members))
            return torch.zeros(len(updates.members))

    assert combined(Mine(project=False), [1.0], [2.0]).tolist() == [0.0]
    assert calls == [2]


@pytest.mark.parametrize("base", [Scheme, FCMoE, FedAlignMoE, Combination])
@pytest.mark.parametrize(
    ("hook", "now"),
    [
        ("combine_expert", r"server\(\).experts, a Together"),
        ("expert_weights", r"server\(\).experts, a Weighted"),
        ("extra_loss", r"client\(\).terms, a WeightTerm"),
        ("keeps_state", "a Keeps part"),
        ("advice", r"check\(run\)"),
    ],
)
def test_a_hook_of_the_old_seam_is_refused_with_what_to_write(
    base: type[Scheme], hook: str, now: str
) -> None:
    with pytest.raises(TypeError, match=f"Old.{hook}: this hook is gone; write .*{now}"):
        type("Old", (base,), {hook: lambda self, *given: None})


def test_a_method_that_nothing_calls_is_refused() -> None:
    with pytest.raises(TypeError, match="Typo.weights: nothing calls it; weight can be defined"):

        class Typo(Mean):
            def weights(self, updates: BlockUpdates) -> Tensor:
                return torch.ones(1)

    with pytest.raises(TypeError, match="Odd.servers: nothing calls it; a scheme has from_config"):

        class Odd(Scheme):
            def servers(self, model: ModelShape) -> Server:
                return Server()

    class Helped(Mean):
        def _helper(self) -> None: ...

        @property
        def _value(self) -> int:
            return 1


def test_what_a_kind_has_fixed_is_refused() -> None:
    with pytest.raises(TypeError, match="Fast.result: fixed by Mean; derive from Summed"):

        class Fast(Mean):
            def result(self, sums: Mapping[str, Any], block: Any) -> dict[str, Tensor]:
                return {}


def test_two_kinds_that_mean_different_things_by_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="Both: Term and TaskLoss both define loss"):

        class Both(WeightTerm, TaskLoss):
            def loss(self, step: LocalStep) -> Tensor:
                return torch.zeros(())

    with pytest.raises(TypeError, match="Chooses: Once and InBatch both define choose"):

        class Chooses(Once, InBatch):
            pass


def test_fields_that_would_be_lost_are_refused() -> None:
    with pytest.raises(TypeError, match="Loose.over = 'members': a field needs its type"):

        class Loose(Mean):
            over = "members"

    class Bare(Mean):
        tau: float = 0.5

    with pytest.raises(TypeError, match=r"Bare: put @dataclass\(frozen=True\) above it"):
        Bare()

    class BareScheme(Scheme):
        lam: float = 0.5

    with pytest.raises(TypeError, match="BareScheme: put @dataclass"):
        BareScheme()


def test_a_part_in_the_wrong_slot_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Server.experts = Proximal\(mu=0.01\): takes Rule"):
        Server(experts=Proximal())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Client.terms = Proximal.*: a tuple of Term parts"):
        Client(terms=Proximal())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Client.select = Mean.*: takes Once or InBatch"):
        Client(select=Mean())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Server.dense = None: takes Rule"):
        Server(dense=None)  # type: ignore[arg-type]


NEWS = Signal("news")


@dataclass(frozen=True)
class Hears(WeightTerm):
    news: Signal = NEWS

    def loss(self, step: LocalStep) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Tells(Telling):
    news: Signal = NEWS

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Any]:
        return {self.news: torch.ones(1)}


@dataclass(frozen=True)
class Halves(Scheme):
    """Any two halves."""

    of_client: Client = Client()  # noqa: RUF009
    of_server: Server = Server()  # noqa: RUF009

    def client(self, model: ModelShape) -> Client:
        return self.of_client

    def server(self, model: ModelShape) -> Server:
        return self.of_server


def test_a_signal_needs_somebody_who_tells_and_somebody_who_hears() -> None:
    with pytest.raises(ConfigError, match='Halves: signal "news": .* no step tells it'):
        plan_of(Halves(Client(terms=(Hears(),))))
    with pytest.raises(ConfigError, match='signal "news": told, and no client part hears it'):
        plan_of(Halves(of_server=Server(steps=(Tells(),))))
    plan_of(Halves(Client(terms=(Hears(),)), Server(steps=(Tells(),))))


def test_halves_that_are_no_halves_are_refused() -> None:
    """A forgotten return would otherwise show on the nodes only."""
    with pytest.raises(ConfigError, match=r"Halves\.client\(\) returned None: must be a Client"):
        plan_of(Halves(of_client=None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Halves\.server\(\) returned Client.*must be a Server"):
        plan_of(Halves(of_server=Client()))  # type: ignore[arg-type]


def test_a_statistic_that_keeps_state_must_be_the_clients_own() -> None:
    with pytest.raises(ConfigError, match="ControlVariate: keeps state, but is no part of the cl"):
        plan_of(Halves(of_server=Server(steps=(Control(3),))))


@dataclass(frozen=True)
class Forgets(Step):
    """Loses a part of its state."""

    def init(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"m": torch.zeros(1), "v": torch.zeros(1)}

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        return dict(now.change), {"m": state["m"]}


def test_a_state_that_loses_a_part_fails_the_round() -> None:
    with pytest.raises(
        ValueError, match=r"Forgets: its state has other tensors or shapes than before \(v\)"
    ):
        fold_toy(Halves(of_server=Server(steps=(Forgets(),))), UPDATES)


@dataclass(frozen=True)
class Drops(Step):
    """Rewrites experts only."""

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        return {key: t for key, t in now.change.items() if ".experts." in key}, {}


def test_a_change_that_loses_a_part_fails_the_round() -> None:
    with pytest.raises(ValueError, match=r"Drops: its change has other tensors .*\(head.weight, l"):
        fold_toy(Halves(of_server=Server(steps=(Drops(),))), UPDATES)


def test_parts_that_keep_do_not_see_each_others_tensors() -> None:
    @dataclass(frozen=True)
    class Counts(WeightTerm, Keeps):
        by: int = 1

        def loss(self, step: LocalStep) -> Tensor | None:
            return None

        def keep(self, done: Trained) -> dict[str, Tensor]:
            return {"n": done.kept.get("n", torch.zeros(1)) + self.by}

    from fedmoe_app.client.parts import ClientParts

    plan = plan_of(Halves(Client(terms=(Counts(1), Counts(10)))))
    kept: dict[str, Tensor] = {}
    for _ in range(2):
        parts = ClientParts(plan)
        parts.start(toy_state(), kept)
        kept = parts.keep(toy_state(), UPDATES[0].changes)
    assert {name: float(t) for name, t in kept.items()} == {"terms.0/n": 2.0, "terms.1/n": 20.0}


def test_combination_is_construction() -> None:
    model = ModelShape(2, 3, 2, 4)
    mine = Halves(
        Client(
            select=HFedMoE().client(model).select,
            terms=FedProx().client(model).terms,
            start_experts=FCMoE().client(model).start_experts,
        ),
        replace(FCMoE().server(model), gates=HFedMoE().server(model).gates),
    )
    named = Combination(HFedMoE(), FedProx(), HFedMoE(), FCMoE())
    one, other = Plan.of(mine, model), Plan.of(named, model)
    assert one.client == other.client
    assert (one.server.gates, one.server.experts) == (other.server.gates, other.server.experts)
    assert isinstance(one.server.gates, Weighted)


def test_a_part_without_fields_is_found_and_equal_to_its_like_without_a_decorator() -> None:
    class Silent(TaskLoss):
        def loss(self, step: LocalStep) -> Tensor:
            return step.logits.sum()

    assert parts_in(Client(loss=Silent())) == [Silent()]
    assert len({Silent(), Silent()}) == 1
