"""Multiple choice: option scores against hand-computed ones, real small models, real questions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fedmoe_app import LoadSpec, load_model
from fedmoe_app.data.encoding import IGNORED_LABEL, Row
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.tasks.base import evaluate
from fedmoe_app.tasks.multiple_choice import MultipleChoice
from tests.conftest import SHARED_DATA, make_config

TOKENIZER = embedded_tokenizer()
CPU = torch.device("cpu")
QUESTIONS = Dataset.from_dict(
    {
        "prompt": ["Question: Wet?\nAnswer:", "Question: What is a graph made of?\nAnswer:"],
        "options": [["sun", "sea"], ["nodes and edges", "water", "a list of numbers"]],
        "answer": [1, 0],
    }
)
PRESETS = [("qwen3moe-tiny", False), ("switch-tiny", True)]

# Probability of the next token (column) after a token (row).
BIGRAMS = torch.tensor(
    [
        [0.1, 0.2, 0.3, 0.4],
        [0.25, 0.25, 0.25, 0.25],
        [0.5, 0.25, 0.125, 0.125],
        [0.7, 0.1, 0.1, 0.1],
    ]
)


class Bigrams:
    """A model that knows four tokens and looks at the last one only."""

    device = CPU

    def eval(self) -> None:
        """Do nothing."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        assert input_ids.shape == attention_mask.shape
        return SimpleNamespace(logits=BIGRAMS[input_ids].log())


STUB = cast(PreTrainedModel, Bigrams())
STUB_ROWS = [
    Row(input_ids=[0], labels=2, options=[[1], [3], [2, 0]], texts=["ab", "x", "abcdef"]),
    Row(input_ids=[2, 1], labels=0, options=[[0, 0], [3, 3]], texts=["cd", "ef"]),
]
STUB_LOGS = [[math.log(0.2), math.log(0.4), math.log(0.3 * 0.5)], [math.log(0.25 * 0.1)] * 2]


def stub_task(normalise: bool = False) -> MultipleChoice:
    tokenizer: Any = SimpleNamespace(pad_token_id=3, eos_token_id=1)
    return MultipleChoice(tokenizer, 8, encoder_decoder=False, normalise=normalise)


def test_log_likelihoods_by_hand() -> None:
    """Three options and two: the shorter question is not filled up, shorter options neither."""
    found = stub_task().log_likelihoods(STUB, STUB_ROWS)
    assert [len(scores) for scores in found] == [3, 2]
    for scores, expected in zip(found, STUB_LOGS, strict=True):
        assert scores == pytest.approx(expected, rel=1e-5)


def test_accuracy_is_the_largest_sum_and_ties_go_to_the_first() -> None:
    task = stub_task()
    assert task.metric == "accuracy"
    assert [task.score_rows(STUB, [row]).correct for row in STUB_ROWS] == [0, 1]  # 0.4 > 0.15
    score = task.score_rows(STUB, STUB_ROWS)
    assert (score.correct, score.items) == (1, 2)
    assert score.loss == pytest.approx(-math.log(0.15) / 2 - math.log(0.025) / 2, rel=1e-5)


def test_acc_norm_divides_by_characters() -> None:
    """ln 0.15 / 6 is above ln 0.4 / 1 and ln 0.2 / 2."""
    task = stub_task(normalise=True)
    assert task.metric == "acc-norm"
    assert task.score_rows(STUB, STUB_ROWS).correct == 2


def test_training_takes_the_right_option_and_the_end() -> None:
    batch = stub_task().collate(STUB_ROWS, CPU)
    assert batch.input_ids.tolist() == [[0, 2, 0, 1, 3], [2, 1, 0, 0, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    no = IGNORED_LABEL
    assert batch.labels.tolist() == [[no, 2, 0, 1, no], [no, no, 0, 0, 1]]
    # 0 -> 2, 2 -> 0, 0 -> end; then 1 -> 0, 0 -> 0, 0 -> end.
    expected = -sum(math.log(p) for p in (0.3, 0.5, 0.2, 0.25, 0.1, 0.2)) / 6
    assert stub_task().loss(STUB, batch).item() == pytest.approx(expected, rel=1e-5)


def model(preset: str) -> PreTrainedModel:
    return load_model(LoadSpec.of(preset, TOKENIZER, task="multiple-choice"))


@pytest.mark.parametrize(("preset", "encoder_decoder"), PRESETS)
def test_padding_changes_no_score(preset: str, encoder_decoder: bool) -> None:
    task, net = MultipleChoice(TOKENIZER, 48, encoder_decoder), model(preset)
    rows = task.encode(QUESTIONS)
    together, apart = (evaluate(net, task, rows, batch_size=size) for size in (2, 1))
    assert (together.items, together.correct) == (apart.items, apart.correct)
    assert together.loss == pytest.approx(apart.loss, rel=1e-4)


@pytest.mark.parametrize(("preset", "encoder_decoder"), PRESETS)
def test_an_options_score_is_that_of_its_tokens_alone(preset: str, encoder_decoder: bool) -> None:
    task, net = MultipleChoice(TOKENIZER, 48, encoder_decoder), model(preset)
    row = task.encode(QUESTIONS)[1]
    found = task.log_likelihoods(net, [row])[0]
    for option, score in zip(row["options"], found, strict=True):
        labels = torch.tensor([option])
        prompt = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            if encoder_decoder:
                logits = net(input_ids=prompt, labels=labels).logits
            else:
                whole = torch.cat([prompt, labels], 1)
                logits = net(input_ids=whole).logits[:, prompt.shape[1] - 1 : -1]
        logs = F.log_softmax(logits[0].float(), -1)
        expected = logs[torch.arange(len(option)), labels[0]].sum()
        assert score == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("preset", "encoder_decoder"), PRESETS)
def test_training_on_the_right_options_makes_them_win(preset: str, encoder_decoder: bool) -> None:
    torch.manual_seed(0)
    task, net = MultipleChoice(TOKENIZER, 48, encoder_decoder), model(preset)
    rows = task.encode(QUESTIONS)
    before = evaluate(net, task, rows, 2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        task.loss(net, task.collate(rows, CPU)).backward()
        optimiser.step()
    after = evaluate(net, task, rows, 2)
    assert after.loss < before.loss / 2
    assert after.accuracy == 1.0
    assert [sample["chosen"] for sample in task.samples(net, rows)] == ["sea", "nodes and edges"]


@pytest.mark.skipif(not (SHARED_DATA / "arc").is_dir(), reason="shared/data is not there")
@pytest.mark.parametrize("name", ["arc/test", "mmlu/dev", "piqa/validation"])
def test_real_questions_are_scored(name: str) -> None:
    config = make_config(
        **{
            "data.task": "multiple-choice",
            "data.partition": "iid",
            "data.source": str(SHARED_DATA / f"{name}.jsonl.gz"),
            "data.max-train-examples": 12,
        }
    )
    questions = load_text_data(config.data).train
    task, net = MultipleChoice(TOKENIZER, 96, encoder_decoder=False), model("qwen3moe-tiny")
    rows = task.encode(questions)
    found = task.log_likelihoods(net, rows)
    assert [len(scores) for scores in found] == [len(options) for options in questions["options"]]
    assert all(score < 0 for scores in found for score in scores)
    score = evaluate(net, task, rows, 8)
    assert score.items == 12 and 0 < score.mean_loss < 20
