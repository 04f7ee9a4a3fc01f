"""Exact match: which number an answer gives, and generated answers of a small model."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from datasets import Dataset

from fedmoe_app.data.encoding import encode_prompts
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.causal_lm import CausalLM, ExactMatch, final_number, is_match
from tests.conftest import SHARED_DATA, make_config
from tests.tasks.test_multiple_choice import PRESETS, model

TOKENIZER = embedded_tokenizer()
SUMS = Dataset.from_dict(
    {
        "prompt": ["Add 3 and 4.", "A longer one: how many legs have two spiders?"],
        "response": ["It is 3+4, so #### 7", "16"],
    }
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 eggs.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $18.00", "18.00"),
        ("#### -5", "-5"),
        ("#### 12\nQuestion: what is 99?", "12"),  # runs on after its answer
        ("The answer is 42.", "42"),
        ("6 * 7 = 42 apples", "42"),
        ("it cost $1,000,000.50 in all", "1000000.50"),
        ("3 of 10-5", "5"),  # a minus between numbers is no sign
        ("down to -5 degrees", "-5"),
        ("costs -$5", "-5"),
        ("half is .5", ".5"),
        ("####", None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("answer", "reference", "match"),
    [
        ("so 18", "9 * 2 = 18\n#### 18", True),
        ("#### 18.0", "9 * 2 = 18\n#### 18", True),
        ("#### 9", "9 * 2 = 18\n#### 18", False),
        ("", "#### 18", False),
        ("1,000 in all", "#### 1000", True),
        ("The answer is 12.", "12", True),
        ("Paris.", " paris", True),
        ("Paris, in 1990", "Paris", False),
        ("In 1990", "It was in 1990.", False),  # not a bare number: compared as text
    ],
)
def test_matches(answer: str, reference: str, match: bool) -> None:
    assert is_match(answer, reference) is match


@pytest.mark.parametrize(("preset", "encoder_decoder"), PRESETS)
def test_a_model_that_learnt_its_answers_is_right(preset: str, encoder_decoder: bool) -> None:
    torch.manual_seed(0)
    task, net = ExactMatch(TOKENIZER, 48, encoder_decoder, max_new_tokens=24), model(preset)
    rows = task.encode(SUMS)
    assert evaluate(net, task, rows, 2).accuracy == 0
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(100):
        optimiser.zero_grad()
        task.loss(net, task.collate(rows, net.device)).backward()
        optimiser.step()
    score = evaluate(net, task, rows, 2)
    assert (score.correct, score.items) == (2, 2)
    samples = task.samples(net, rows)
    assert [sample["generated"] for sample in samples] == SUMS["response"][:]
    assert samples[0]["expected"] == SUMS["response"][0]
    assert samples[0]["prompt"].strip() == SUMS["prompt"][0]


def test_the_loss_is_a_mean_of_means() -> None:
    task, net = ExactMatch(TOKENIZER, 48, False, max_new_tokens=1), model("qwen3moe-tiny")
    plain = CausalLM(TOKENIZER, 48, encoder_decoder=False)
    rows = task.encode(SUMS)
    means = [evaluate(net, plain, [row], 1).mean_loss for row in rows]
    assert evaluate(net, task, rows, 2).mean_loss == pytest.approx(sum(means) / 2, rel=1e-4)


def test_the_prompt_stays_whole_where_the_response_is_long() -> None:
    data = Dataset.from_dict({"prompt": ["a b c d e f"], "response": ["long " * 50 + "#### 3"]})
    (row,) = ExactMatch(TOKENIZER, 16, encoder_decoder=False).encode(data)
    assert row["prompt"] == encode_prompts(data, TOKENIZER, 16)[0]
    assert row["reference"].endswith("#### 3")


@pytest.mark.skipif(not (SHARED_DATA / "gsm8k").is_dir(), reason="shared/data is not there")
def test_gsm8k_references_give_their_published_answers() -> None:
    config = make_config(
        **{
            "data.task": "causal-lm",
            "data.partition": "iid",
            "data.source": str(SHARED_DATA / "gsm8k/test.jsonl.gz"),
            "data.max-train-examples": 200,
        }
    )
    for response in load_text_data(config.data).train["response"]:
        answer = response.rpartition("#### ")[2]
        assert is_match(response, response) and is_match(answer, response)
        assert is_match(f"So there are {answer} in all.", response)
        assert not is_match(f"#### {answer}9", response)
