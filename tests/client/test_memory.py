"""The estimate of a node's memory: by hand on a tiny model, and the budget that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.client.memory import GIB, Need, estimate, largest_budget
from fedmoe_app.tasks.setup import load_setup
from tests.bases import save_base
from tests.conftest import make_config

# 3.0 GiB and half a GiB an expert.
NEED = Need(fixed=3 * GIB, per_expert=GIB // 2)


@pytest.mark.parametrize(
    ("budget", "experts"), [(4.0, 2), (4.49, 2), (4.5, 3), (7.0, 8), (100.0, 8)]
)
def test_the_most_experts_that_fit(budget: float, experts: int) -> None:
    assert largest_budget(NEED, budget, least=2, most=8) == experts


def test_too_little_says_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"memory-budget = 3.9: about 4.00 GiB .* 2 experts"):
        largest_budget(NEED, 3.9, least=2, most=8)
    with pytest.raises(ConfigError, match=r"about 7.00 GiB are needed with all experts"):
        largest_budget(NEED, 6.9, least=8, most=8)


def test_an_expert_counted_by_hand(tmp_path: Path) -> None:
    """2 layers; maps of 32 x 32 and 32 x 16 in float32; LoRA of rank 2."""
    save_base(tmp_path, "Olmoe")
    options = {"model.name": str(tmp_path), "model.head": "label-words", "data.max-length": 16}
    values, adapter = 32 * 32 + 32 * 16, 2 * (32 + 32) + 2 * (32 + 16)
    expected = {
        # its value; received, gradient and two moments; message, received, change, reply
        ("experts", "none"): values * (4 + 16 + 16),
        ("expert-lora", "none"): values * 4 + adapter * (4 + 16 + 16),
    }
    for (train, quantization), size in expected.items():
        config = make_config(
            **options,
            **{"model.train": train, "model.lora-rank": 2, "model.quantization": quantization},
        )
        whole = estimate(load_setup(config, ("no", "yes")), config)
        assert whole.per_expert == 2 * size
        for loaded in ([[0, 1], [1, 3]], []):
            some = estimate(load_setup(config, ("no", "yes"), loaded), config)
            assert some == whole  # whatever is loaded now
