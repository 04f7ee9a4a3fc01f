"""The registry, and the client halves of FedProx and FedMoE."""

from pathlib import Path

import pytest
import torch

from fedmoe_app import (
    SCHEMES,
    ConfigError,
    FedAvg,
    FedMoE,
    FedProx,
    LocalStep,
    ModelShape,
    Run,
    Scheme,
    make_scheme,
)
from fedmoe_app.config.names import ADAPTERS_ONLY
from tests.conftest import make_config
from tests.toy import loss_of, plan_of, select, toy_client, toy_stats


class OwnScheme(Scheme):
    """A user's scheme, found by its path."""

    @classmethod
    def from_config(cls, config):  # noqa: ANN001, ANN206
        scheme = cls()
        object.__setattr__(scheme, "lam", config.scheme_kwargs["lam"])
        return scheme


def test_every_registered_name_builds_its_scheme() -> None:
    for name, scheme_class in SCHEMES.items():
        needs = {"model.train": "expert-lora"} if name in ADAPTERS_ONLY else {}
        assert type(make_scheme(make_config(scheme=name, **needs))) is scheme_class


def test_an_unknown_name_prints_the_choices() -> None:
    with pytest.raises(
        ConfigError, match=r'"fedalgin": unknown; choose one of fedavg, fedprox, fedmoe,'
    ):
        make_scheme(make_config(scheme="fedalgin"))


def test_a_users_class_gets_its_arguments() -> None:
    config = make_config(
        **{"scheme": "tests.schemes.test_schemes:OwnScheme", "scheme-args": '{"lam": 0.5}'}
    )
    assert make_scheme(config).lam == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_package.module:Class", "cannot be imported"),
        ("fedmoe_app.schemes.fedavg:NoSuchClass", "cannot be imported"),
        ("fedmoe_app.config.parse:RunConfig", "not a subclass"),
        (".x:X", r"\.x:X.*cannot be imported \(TypeError: .*relative import"),
    ],
)
def test_a_wrong_path_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_scheme(make_config(scheme=name))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("lam = undefined", "NameError: name 'undefined' is not defined"),
        ("def f(:", r"SyntaxError: .*line 1"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_users_module_raises_is_told(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_scheme.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f'scheme = "broken_scheme:X": .*{reason}'):
        make_scheme(make_config(scheme="broken_scheme:X"))


class Choosy(Scheme):
    """A user's scheme that checks its argument."""

    @classmethod
    def from_config(cls, config):  # noqa: ANN001, ANN206
        raise ValueError(f"lam = {config.scheme_kwargs['lam']}: must be positive")


def test_a_value_that_a_users_class_refuses_is_told_with_its_name() -> None:
    name = "tests.schemes.test_schemes:Choosy"
    with pytest.raises(ConfigError, match=f'scheme = "{name}".*lam = -1: must be positive'):
        make_scheme(make_config(**{"scheme": name, "scheme-args": '{"lam": -1}'}))


def test_scheme_args_are_refused_for_built_in_schemes_and_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match="only for your own scheme"):
        make_scheme(make_config(**{"scheme": "fedavg", "scheme-args": '{"lam": 1}'}))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'lam'"):
        make_scheme(
            make_config(
                **{"scheme": "fedmoe_app.schemes.fedavg:FedAvg", "scheme-args": '{"lam": 1}'}
            )
        )


def step(parameter: torch.Tensor, reference: torch.Tensor) -> LocalStep:
    return LocalStep({"a": parameter}, {"a": reference})


def test_the_proximal_term() -> None:
    parameter = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = loss_of(FedProx(proximal_mu=0.5), step(parameter, torch.tensor([0.0, 1.0])))
    assert loss is not None
    assert loss.item() == pytest.approx(0.5 / 2 * (1 + 4))
    loss.backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.5, 1.0]  # μ·(θ − θ_global)


def test_mu_zero_is_fedavg() -> None:
    assert loss_of(FedProx(proximal_mu=0.0), step(torch.ones(1), torch.zeros(1))) is None


def test_fedmoe_chooses_the_most_used_experts_and_breaks_ties_by_index() -> None:
    asked: list[int] = []

    def usage(max_examples: int):  # noqa: ANN202
        asked.append(max_examples)
        return toy_stats([], count=[[5, 9, 7], [4, 4, 4]])

    scheme = FedMoE(2, usage_examples=10)
    assert select(scheme).choose(toy_client(usage)) == [[1, 2], [0, 1]]
    assert asked == [10]
    assert select(scheme).choose(toy_client(usage, expert_budget=1)) == [[1], [0]]
    assert select(scheme).budget(toy_client(usage, expert_budget=3)) == 2


@pytest.mark.parametrize("experts", [0, 9])
def test_fedmoe_refuses_more_experts_than_there_are(experts: int) -> None:
    with pytest.raises(ConfigError, match=rf"experts-per-client = {experts}.*choose 1 to 8"):
        FedMoE(experts_per_client=experts).check(Run(ModelShape(2, 8, 2)))


def test_fedavg_trains_all_experts() -> None:
    assert plan_of(FedAvg()).client.select is None


def test_a_users_module_that_ends_the_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_script.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"a_script:X.*cannot be imported \(SystemExit: 3\)"):
        make_scheme(make_config(scheme="a_script:X"))
