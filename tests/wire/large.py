"""A state with matrices that go through a codec, and an update of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedmoe_app import ClientUpdate, ModelState
from tests.toy import toy_update

TRAINED = [(0, 1), (1, 0), (1, 2)]


def large_state(seed: int = 0, scale: float = 1.0) -> ModelState:
    """Two layers of three experts, as the toy's, with matrices and a bias."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=noise)

    return ModelState(
        dense={"embed.weight": normal(20, 16), "norm.weight": normal(16)},
        gates={layer: {"weight": normal(3, 32)} for layer in range(2)},
        experts={
            (layer, expert): {"up": normal(16, 8), "down": normal(8, 16), "bias": normal(8)}
            for layer in range(2)
            for expert in range(3)
        },
    )


def large_update(
    seed: int = 1, trained: list[tuple[int, int]] = TRAINED, client: int = 3
) -> ClientUpdate:
    """An update of the state's dense tensors, gates and these experts."""
    changes = large_state(seed, 1e-3)
    changes.experts = {key: changes.experts[key] for key in trained}
    toy = toy_update(client, 17, 0.5, trained)
    region = torch.arange(2.0 * 3 * 4).reshape(2, 3, 4)  # [L, E, D]
    return replace(toy, changes=changes, routing=replace(toy.routing, region=region))
