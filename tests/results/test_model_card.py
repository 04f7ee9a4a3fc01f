"""The model card: what it says, what it keeps to itself, and that a hub can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from fedmoe_app import run_in_process
from fedmoe_app.results.model_card import accuracy_interval, licence_of, model_card
from tests.conftest import flat_config

pytestmark = pytest.mark.usefixtures("no_pictures")

LINES: list[dict[str, Any]] = [
    {"round": 0, "accuracy": 0.125, "loss": 2.08, "metric": "accuracy", "clients": []},
    {
        "round": 1,
        "accuracy": 0.5,
        "loss": 1.5,
        "metric": "accuracy",
        "clients": [{"client": 0, "num_examples": 30}, {"client": 1, "num_examples": 12}],
    },
]


def test_a_card_says_what_was_done_and_what_came_of_it() -> None:
    card = model_card(flat_config(), LINES, "Qwen3MoeForSequenceClassification", items=100)
    assert "| clients | 2 |" in card
    assert "| training examples | 42 |" in card
    assert "| accuracy after round 1 | 0.500 |" in card
    assert "| 95 % interval | 0.404 to 0.596, over 100 items |" in card  # Wilson's, by hand
    assert "| before training | 0.125, loss 2.080 nats |" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    data = ModelCard(card).data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert "fedavg" in data["tags"]
    assert "base_model" not in data  # a preset is no model of a hub


def test_wilsons_interval_by_hand() -> None:
    # centre (p + z²/2n)/(1 + z²/n), half z/(1 + z²/n)·√(p(1−p)/n + z²/4n²), z = 1.96, p = 1, n = 10
    assert accuracy_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_paths_and_markup_of_names_do_not_get_through() -> None:
    flat = flat_config(
        **{"data.source": "/secret/site/ward-7.jsonl", "model.name": "/secret/base|*x*"}
    )
    card = model_card(flat, LINES, "MixtralForCausalLM")
    assert "/secret" not in card
    assert "ward-7.jsonl" in card
    assert r"base\|\*x\*" in card


def test_the_licence_of_the_base_is_kept(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    assert licence_of(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(str(tmp_path)) is None


def test_a_run_leaves_a_card_that_a_hub_can_read(tmp_path: Path) -> None:
    flat = flat_config(
        **{
            "output-dir": str(tmp_path),
            "num-server-rounds": 1,
            "data.max-train-examples": 32,
            "data.max-test-examples": 16,
        }
    )
    run = run_in_process(flat, 2)
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert "over 16 items" in card.text
