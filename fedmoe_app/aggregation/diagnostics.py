"""Diagnostics: what a scheme did in a round, in the shape of ``metrics.jsonl``.

Of every expert, under any scheme: ``conflict``, the share of members whose change has a negative
dot product with the combined one, and ``expert_weights`` where its rule is a mean or has weights. A
scheme adds its own by probes (:class:`fedmoe_app.schemes.parts.Probe`).

Shapes: L layers, E experts, N clients of the round, M members that trained an expert.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.schemes.parts import ExpertProbe, Mean, RoundProbe, Rule, Server, Weighted
from fedmoe_app.schemes.sums import dots, mean_of
from fedmoe_app.schemes.views import BlockUpdates, RoundInfo

logger = logging.getLogger("fedmoe")

# Matrices [L, E, N, N] with more entries than this are left out of a round's line.
MAX_PAIRS = 20_000
_Expert = tuple[int, int]


class Diagnostics:
    """Collects the numbers of single experts into ``[L][E]`` tables, null where nobody trained."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._shape = (num_layers, num_experts)
        self._found: dict[str, dict[_Expert, Any]] = {}
        self._num_clients = 0
        self._of_round: dict[str, Any] = {}

    def add(self, server: Server, updates: BlockUpdates, change: Tensor) -> None:
        """Look at an expert that has just been combined.

        A fault in a scheme's diagnostics costs these numbers, not the round.
        """
        self._num_clients = len(updates.info.num_examples)
        try:
            found: dict[str, Any] = {"conflict": conflict_share(updates.rows, change)}
            found |= weights_of(server.experts, updates)
            for probe in server.probes:
                if isinstance(probe, ExpertProbe):
                    found |= probe.of_expert(updates, change)
            spread = {
                name: self._spread(value, updates.members)
                for name, value in found.items()
                if not self._is_too_large(value)
            }
        except Exception as error:  # whatever a user's scheme does
            logger.warning("diagnostics of expert %s: %r", updates.block.key, error)
            return
        for name, value in spread.items():
            self._found.setdefault(name, {})[updates.block.key] = value

    def note(self, name: str, numbers: Tensor) -> None:
        """Note numbers of the round, ``[N]``."""
        self._of_round[name] = numbers

    def result(self, server: Server, info: RoundInfo) -> dict[str, Any]:
        """Return the tables of all experts and what the scheme says of the round."""
        layers, experts = self._shape
        tables = {
            name: [[found.get((layer, e)) for e in range(experts)] for layer in range(layers)]
            for name, found in self._found.items()
        }
        tables |= self._of_round
        try:
            for probe in server.probes:
                if isinstance(probe, RoundProbe):
                    tables |= probe.of_round(info)
        except Exception as error:  # as in add()
            logger.warning("diagnostics of round %d: %r", info.server_round, error)
        return tables

    def _is_too_large(self, value: Any) -> bool:
        """Whether it is one of the matrices that a line has no room for."""
        layers, experts = self._shape
        is_matrix = isinstance(value, Tensor) and value.dim() == 2
        return is_matrix and layers * experts * self._num_clients**2 > MAX_PAIRS

    def _spread(self, value: Any, members: tuple[int, ...]) -> Any:
        """Lay the members' numbers out over the round's N clients, null for the others."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return float(value)
        if value.dim() == 1:
            return _lay_out(value.tolist(), members, self._num_clients)
        rows = [_lay_out(row, members, self._num_clients) for row in value.tolist()]
        return _lay_out(rows, members, self._num_clients, [None] * self._num_clients)


def weights_of(rule: Rule, updates: BlockUpdates) -> dict[str, Tensor]:
    """Return what the members weigh in an expert, ``[M]``; nothing where a rule has no weights."""
    if isinstance(rule, Weighted):
        return {"expert_weights": rule.weights(updates)}
    if not isinstance(rule, Mean):
        return {}
    shares = torch.tensor([rule.weight(reply, updates.block) for reply in updates.replies])  # [N]
    members = shares[list(updates.members)]
    counted = shares if rule.over == "all" else members
    return {"expert_weights": mean_of(members.clone(), counted)}


def conflict_share(deltas: Sequence[Tensor] | Tensor, change: Tensor) -> float:
    """Return the share of ``deltas``, M vectors ``[P]``, with ⟨Δ_i, change⟩ < 0."""
    return float((dots(deltas, change) < 0).double().mean())


def _lay_out(values: list[Any], members: tuple[int, ...], size: int, empty: Any = None) -> Any:
    row = [empty] * size
    for member, value in zip(members, values, strict=True):
        row[member] = value
    return row
