"""Rows whose text gives no token are left out like empty ones, in every task."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedmoe_app.tasks.base import Task
from fedmoe_app.tasks.causal_lm import CausalLM, ExactMatch
from fedmoe_app.tasks.classification import SequenceClassification
from fedmoe_app.tasks.multiple_choice import MultipleChoice

WORDS = ["<pad>", "<s>", "</s>", "one", "two", "three", "Question", "Answer", "say"]


def tokenizer(eos: bool = True, template: bool = False) -> PreTrainedTokenizerFast:
    """One that drops every character but the letters of English, and every word it lacks."""
    whole = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    whole.normalizer = normalizers.Replace(_other_than_letters(), " ")
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        special = [("<s>", 1), ("</s>", 2)]
        whole.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="</s>" if eos else None
    )


def _other_than_letters() -> object:
    from tokenizers import Regex

    return Regex("[^A-Za-z]+")


TEXTS = Dataset.from_dict({"text": ["one", "日本", "two ☺", "★"], "label": [0, 1, 1, 0]})
CHATS = Dataset.from_dict({"prompt": ["say one", "say", "★"], "response": ["one", "★", "two"]})
QUESTIONS = Dataset.from_dict(
    {
        "prompt": ["Question: one\nAnswer:"] * 2,
        "options": [["one", "two"], ["one", "★"]],
        "answer": [1, 0],
    }
)


@pytest.mark.parametrize("template", [True, False])
def test_a_text_without_tokens_is_no_example(
    template: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = SequenceClassification(tokenizer(template=template), 16)
    with caplog.at_level(logging.WARNING):
        rows = task.encode(TEXTS)
    assert [row["labels"] for row in rows] == [0, 1]
    assert "dropped 2 of 4 examples, whose text gives no token" in caplog.text
    assert "the first is example 2" in caplog.text
    assert "日本" not in caplog.text  # no text of a row in a log


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_a_response_without_tokens_is_no_example(eos: bool, encoder_decoder: bool) -> None:
    rows = CausalLM(tokenizer(eos), 16, encoder_decoder).encode(CHATS)
    # Without a prompt, an end or a start nothing is predicted but the first token, from nothing.
    trainable = eos or encoder_decoder
    assert len(rows) == 1 + trainable
    assert [WORDS.index("one") in row["labels"] for row in rows] == [True, False][: 1 + trainable]


def test_references_stay_with_their_rows() -> None:
    rows = ExactMatch(tokenizer(), 16, encoder_decoder=False).encode(CHATS)
    assert [row["reference"] for row in rows] == ["one", "two"]


def test_a_question_with_an_option_without_tokens_is_no_example(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = MultipleChoice(tokenizer(), 16, encoder_decoder=False).encode(QUESTIONS)
    assert [row["texts"] for row in rows] == [["one", "two"]]
    assert "dropped 1 of 2 examples, whose option gives no token" in caplog.text


@pytest.mark.parametrize(
    ("task", "data"),
    [
        (SequenceClassification(tokenizer(), 16), TEXTS.select([1])),
        (CausalLM(tokenizer(), 16, encoder_decoder=False), CHATS.select([1])),
        (MultipleChoice(tokenizer(), 16, encoder_decoder=False), QUESTIONS.select([1])),
    ],
)
def test_there_may_be_none_left(task: Task, data: Dataset) -> None:
    assert task.encode(data) == []


def test_nothing_is_said_where_all_have_tokens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = SequenceClassification(tokenizer(), 2).encode(TEXTS.select([0, 2]))
    assert len(rows) == 2
    assert not caplog.records
