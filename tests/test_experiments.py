"""Every file in experiments/ is a valid run config, and every ablation is the one it says."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import (
    SCHEMES,
    Combination,
    FCMoE,
    FedAlignMoE,
    FedAvg,
    FedMoE,
    FedProx,
    HFedMoE,
    PFLMoE,
    Scheme,
    make_scheme,
)
from fedmoe_app.config.names import LABEL_SKEW
from fedmoe_app.config.parse import flatten_table
from tests.conftest import REPOSITORY, flat_config, make_config

FILES = sorted((REPOSITORY / "experiments").glob("*.toml"))

# The whole schemes: those files set nothing but the scheme, or its defaults.
WHOLE: dict[str, Scheme] = {
    "fedavg": FedAvg(),
    "fedprox": FedProx(),
    "fedmoe": FedMoE(),
    "pflmoe": PFLMoE(),
    "hfedmoe": HFedMoE(),
    "fcmoe": FCMoE(),
    "fedalign": FedAlignMoE(),
    **{name: SCHEMES[name]() for name in LABEL_SKEW if any(f.stem == name for f in FILES)},
}
# File: the whole scheme, and the one component in which it differs.
ABLATIONS: dict[str, tuple[str, str, Any]] = {
    "fcmoe-no-projection": ("fcmoe", "projection", False),
    "fcmoe-no-retention": ("fcmoe", "retention", "none"),
    "fcmoe-no-importance": ("fcmoe", "importance", False),
    "fcmoe-filtered": ("fcmoe", "retention", "filtered"),
    "fedalign-consistency-gates": ("fedalign", "gates", "consistency"),
    "fedalign-average-gates": ("fedalign", "gates", "average"),
    "fedalign-uniform-weights": ("fedalign", "uniform_weights", True),
    "fedalign-no-adaptive": ("fedalign", "adaptive", False),
    "fedalign-index-experts": ("fedalign", "experts", "index"),
    "fedalign-no-direction": ("fedalign", "direction", False),
    "fedalign-fixed-threshold": ("fedalign", "adaptive_threshold", False),
    "fedalign-bernoulli": ("fedalign", "kl", "bernoulli"),
    "hfedmoe-per-round": ("hfedmoe", "selection", "round"),
    "hfedmoe-printed-gates": ("hfedmoe", "normalise", False),
    "hfedmoe-no-selection": ("hfedmoe", "selection", "none"),
    "pflmoe-joint": ("pflmoe", "joint", True),
}
COMBINATIONS: dict[str, Combination] = {
    "combine-hfedmoe-fcmoe": Combination(HFedMoE(), FedAvg(), FedAvg(), FCMoE()),
    "combine-hfedmoe-fedalign": Combination(HFedMoE(), FedAlignMoE(), FedAlignMoE(), FedAlignMoE()),
}
# These are about data and models; their scheme is the default.
OTHERS = (
    "arc",
    "closed-form-head",
    "closed-form-head-after",
    "gsm8k",
    "instructions",
    "nodes-own-data",
    "own-text",
    "qlora",
    "smollm2",
    "strongly-unequal",
    "switch-top1",
)
OF_SCHEMES = (*WHOLE, *ABLATIONS, *COMBINATIONS)


def overrides_of(name: str) -> dict[str, Any]:
    path = REPOSITORY / "experiments" / f"{name}.toml"
    return flatten_table(tomllib.loads(path.read_text(encoding="utf-8")))


def scheme_of(name: str) -> Scheme:
    return make_scheme(make_config(**overrides_of(name)))


def differing(one: Scheme, other: Scheme) -> dict[str, Any]:
    """The fields in which two schemes of one class differ, with the values of the first."""
    assert type(one) is type(other)
    pairs = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in fields(one)}
    return {name: mine for name, (mine, theirs) in pairs.items() if mine != theirs}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_overrides_known_keys_with_valid_values(path: Path) -> None:
    overrides = overrides_of(path.stem)
    assert overrides.keys() <= flat_config().keys()
    make_scheme(make_config(**overrides))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_begins_with_what_it_is_and_its_command(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert len(head[0]) > 10
    assert any(f"fedmoe run . {rest}" in " ".join(head) for rest in ("-c", "--clients", "lab"))
    assert any(line.endswith(f"-c experiments/{path.name}") for line in head)


def test_no_file_is_left_out_here() -> None:
    assert {path.stem for path in FILES} == {*OF_SCHEMES, *OTHERS}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_scheme_has_the_defaults_of_its_class(name: str) -> None:
    assert scheme_of(name) == WHOLE[name]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_in_one_component(name: str) -> None:
    whole, component, value = ABLATIONS[name]
    assert differing(scheme_of(name), scheme_of(whole)) == {component: value}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_takes_the_parts_that_it_names(name: str) -> None:
    assert scheme_of(name) == COMBINATIONS[name]


@pytest.mark.parametrize("name", OF_SCHEMES)
def test_an_experiment_with_a_scheme_sets_nothing_else(name: str) -> None:
    """`fedmoe compare` takes them as rows, which must agree on data, model and rounds."""
    overrides = overrides_of(name)
    scheme = overrides.pop("scheme")
    assert all(key.startswith(f"{scheme}.") for key in overrides)


def test_no_two_experiments_build_the_same_scheme() -> None:
    schemes = {name: scheme_of(name) for name in OF_SCHEMES}
    same = [(a, b) for a, b in combinations(schemes, 2) if schemes[a] == schemes[b]]
    assert same == []
