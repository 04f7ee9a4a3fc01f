"""The heat maps of a run page: which numbers, which way round, on which scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedmoe_app.report.html.cubes import (
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
)
from fedmoe_app.results.values import Line


class Map(NamedTuple):
    """One heat map; the axes of its cube that are neither rows nor columns get a control.

    ``format`` is ``share``, ``number`` or ``count``. ``scale`` is ``sequential``, from ``low`` to
    ``high`` or the largest value, or ``diverging`` around 0; with ``own_scale`` the largest
    value of what is shown, instead of all that the cube holds.
    """

    title: str
    about: str
    cube: str
    rows: str
    columns: str
    format: str = "number"
    scale: str = "sequential"
    low: float | None = 0
    high: float | None = None
    own_scale: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {key: value for key, value in self._asdict().items() if key != "about"}


ROUTING = {
    "routing-layers": Map(
        "Layers against experts",
        "Share of the routed tokens of a layer that each expert got; a row sums to 100 %.",
        "routing", LAYER, EXPERT, "share",
    ),
    "routing-clients": Map(
        "Clients against experts",
        "The same numbers for one layer: where clients differ, they use other experts.",
        "routing", CLIENT, EXPERT, "share",
    ),
}  # fmt: skip
TRAINED = {
    "trained": Map(
        "Which clients fed which expert",
        "Optimiser steps in which a client changed an expert; the last place of the slider is the "
        "sum of all rounds.",
        "trained", CLIENT, EXPERT, "count", own_scale=True,
    ),
}  # fmt: skip
DIAGNOSTICS = {
    "conflict": Map(
        "Conflicting updates",
        "Share of the clients that trained an expert whose change has a negative dot product with "
        "the combined one, which contains their own.",
        "conflict", LAYER, EXPERT, "share",
    ),
    "kappa": Map(
        "κ of the projection", "Gain in step length by FC-MoE's projection.",
        "kappa", LAYER, EXPERT, low=None,
    ),
    "expert-weights": Map(
        "Weights of the clients",
        "What each client's update of an expert counted; a column sums to 1.",
        "expert_weights", CLIENT, EXPERT,
    ),
    "omega": Map(
        "Consistency weights ω",
        "Weight of each client in FedAlign-MoE's reference routing; a column sums to 1.",
        "omega", CLIENT, EXPERT,
    ),
    "similarity": Map(
        "Similarity S of the regions",
        "Cosine of two clients' mean hidden states of the tokens whose best expert this is.",
        "similarity", CLIENT, OTHER, scale="diverging", low=-1, high=1,
    ),
    "agreement": Map(
        "Agreement D of the updates",
        "Cosine between two clients' changes of an expert; below 0 they pull apart.",
        "agreement", CLIENT, OTHER, scale="diverging", low=-1, high=1,
    ),
}  # fmt: skip


def cubes_of(lines: Sequence[Line]) -> dict[str, Cube]:
    """Return the cubes that a run has numbers for, by name."""
    found = {
        "routing": routing_cube(lines),
        "trained": trained_cube(lines),
        "conflict": expert_cube(lines, "conflict"),
        "kappa": expert_cube(lines, "kappa"),
        "expert_weights": client_cube(lines, "expert_weights", client_axis=2),
        "omega": client_cube(lines, "omega", client_axis=1),
        "similarity": pair_cube(lines, "similarity"),
        "agreement": pair_cube(lines, "agreement"),
    }
    return {name: cube for name, cube in found.items() if cube is not None}


def maps_for(maps: dict[str, Map], cubes: dict[str, Cube]) -> dict[str, Map]:
    """Return the maps whose cube is there."""
    return {name: each for name, each in maps.items() if each.cube in cubes}
