"""Conversations in tasks: samples, exact match, stopping, and what a model learns of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from fedmoe_app import LoadSpec, load_model
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.causal_lm import CausalLM, ExactMatch
from fedmoe_app.tasks.setup import load_setup
from tests.conftest import make_config
from tests.data import chat_templates as templates
from tests.data.chat_templates import batch, chat_tokenizer, messages

LM = {"data.task": "causal-lm", "data.partition": "iid"}
TALKS = Dataset.from_dict(
    batch(
        messages("Say one.", "One.", "And two?", "It is #### 2"),
        messages(("system", "Count."), "Say three.", "3"),
    )
)


def tiny_model(preset: str, tokenizer: Any) -> Any:
    return load_model(LoadSpec.of(preset, tokenizer, task="causal-lm"))


def learn(task: CausalLM, model: Any, rows: Any, steps: int = 120) -> None:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        task.loss(model, task.collate(rows, model.device)).backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("preset", "template"),
    [
        ("qwen3moe-tiny", templates.CHATML),
        ("qwen3moe-tiny", templates.CLOSED),
        ("qwen3moe-tiny", None),
        ("switch-tiny", None),
    ],
)
def test_a_model_that_learnt_its_answers_gives_them_and_stops(
    preset: str, template: str | None
) -> None:
    tokenizer = chat_tokenizer(template)
    task = ExactMatch(tokenizer, 200, preset == "switch-tiny", 30, make_config(**LM).data)
    model, rows = tiny_model(preset, tokenizer), task.encode(TALKS)
    assert [row["reference"] for row in rows] == ["It is #### 2", "3"]
    learn(task, model, rows)
    assert (score := evaluate(model, task, rows, 2)).correct == score.items == 2
    samples = task.samples(model, rows)
    # Nothing after the answer: the end of the template's turn stops it.
    assert [sample["generated"] for sample in samples] == ["It is #### 2", "3"]
    assert "One." in samples[0]["prompt"] and "And two?" in samples[0]["prompt"]
    assert "####" not in samples[0]["prompt"]


def test_samples_of_conversations_continue_the_last_question() -> None:
    tokenizer = chat_tokenizer(templates.CHATML)
    task = CausalLM(tokenizer, 200, False, 4, make_config(**LM).data)
    rows = task.encode(TALKS)
    samples = task.samples(tiny_model("qwen3moe-tiny", tokenizer), rows)
    assert samples[0]["prompt"].endswith("And two?\nassistant\n")
    assert [sample["expected"] for sample in samples] == ["It is #### 2", "3"]


def test_samples_of_a_text_continue_its_first_half() -> None:
    tokenizer = chat_tokenizer(None)
    task = CausalLM(tokenizer, 200, False, 4, make_config(**LM).data)
    rows = task.encode(Dataset.from_dict({"text": ["abcdefgh"]}))
    (sample,) = task.samples(tiny_model("qwen3moe-tiny", tokenizer), rows)
    assert (sample["prompt"], sample["expected"]) == ("abcd", "efgh")


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    tokenizer = chat_tokenizer(templates.CHATML)
    task = CausalLM(tokenizer, 200, False, 4, make_config(**LM).data)
    model = tiny_model("qwen3moe-tiny", tokenizer)
    (row, _) = task.encode(TALKS)
    score = evaluate(model, task, [row], 1)
    answers = ("One.<|im_end|>", "It is #### 2<|im_end|>")
    assert score.items == sum(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers
    )
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        own = model(input_ids=ids, labels=torch.tensor([row["labels"]])).loss
    assert score.mean_loss == pytest.approx(float(own), rel=1e-5)


def test_a_template_of_the_config_becomes_the_tokenizers() -> None:
    config = make_config(**LM, **{"data.chat-template": templates.CHATML})
    assert load_setup(config, ()).tokenizer.chat_template == templates.CHATML
