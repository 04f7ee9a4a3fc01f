"""The heat maps of a run, on its page and in its picture files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fedmoe_app.report.cubes import (
    CLIENT,
    EXPERT,
    LAYER,
    OTHER,
    Cube,
    client_cube,
    expert_cube,
    pair_cube,
    routing_cube,
    trained_cube,
    weight_cube,
)
from fedmoe_app.report.heat import Map
from fedmoe_app.results.values import Line

# A scale reaches at least so far from its middle: rounding must not look like structure.
LEAST_SPREAD = 0.05

ROUTING: Mapping[str, Map] = MappingProxyType({
    "routing-layers": Map(
        "Layers against experts",
        "Share of the routed tokens of a layer that each expert got; a row sums to 100 %.",
        "routing", LAYER, EXPERT, label="share of the routed tokens",
    ),
    "routing-clients": Map(
        "Clients against experts",
        "The same numbers for one layer: where clients differ, they use other experts.",
        "routing", CLIENT, EXPERT, label="share of the client's routed tokens",
    ),
    "trained": Map(
        "Which clients fed which expert",
        "Share of its optimiser steps in which a client changed an expert; the last place of the "
        "slider is all rounds together.",
        "trained", CLIENT, EXPERT, high=1.0, label="share of the client's optimiser steps",
    ),
})  # fmt: skip
DIAGNOSTICS: Mapping[str, Map] = MappingProxyType({
    "conflict": Map(
        "Conflicting updates",
        "Share of the clients that trained an expert whose change has a negative dot product with "
        "the combined one, which contains their own.",
        "conflict", LAYER, EXPERT, least=0.1, label="conflicting updates",
    ),
    "kappa": Map(
        "κ of the projection", "Gain in step length by FC-MoE's projection.",
        "kappa", LAYER, EXPERT, "number", least=0.001, label="κ, gain in step length",
    ),
    "expert-weights": Map(
        "Weights of the clients",
        "What each client's update of an expert counted, in multiples of an equal weight.",
        "expert_weights", CLIENT, EXPERT, "number", least=LEAST_SPREAD, middle=1.0,
        label="weight / equal weight",
    ),
    "omega": Map(
        "Consistency weights ω",
        "Weight of each client in FedAlign-MoE's reference routing; a column sums to 100 %.",
        "omega", CLIENT, EXPERT, label="ω, client's share",
    ),
    "similarity": Map(
        "Similarity S of the regions",
        "Cosine of two clients' mean hidden states of the tokens whose best expert this is.",
        "similarity", CLIENT, OTHER, "number", least=LEAST_SPREAD, middle=0.0, label="S, cosine",
    ),
    "agreement": Map(
        "Agreement D of the updates",
        "Cosine between two clients' changes of an expert; below 0 they pull apart.",
        "agreement", CLIENT, OTHER, "number", least=LEAST_SPREAD, middle=0.0, label="D, cosine",
    ),
})  # fmt: skip


def cubes_of(lines: Sequence[Line]) -> dict[str, Cube]:
    """Return the cubes that a run has numbers for, by name."""
    found = {
        "routing": routing_cube(lines),
        "trained": trained_cube(lines),
        "conflict": expert_cube(lines, "conflict"),
        "kappa": expert_cube(lines, "kappa"),
        "expert_weights": weight_cube(lines),
        "omega": client_cube(lines, "omega", client_axis=1),
        "similarity": pair_cube(lines, "similarity"),
        "agreement": pair_cube(lines, "agreement"),
    }
    return {name: cube for name, cube in found.items() if cube is not None}


def maps_for(maps: Mapping[str, Map], cubes: Mapping[str, Cube]) -> dict[str, Map]:
    """Return the maps whose cube is there."""
    return {name: each for name, each in maps.items() if each.cube in cubes}
