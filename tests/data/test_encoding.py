from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from fedmoe_app.data.encoding import IGNORED_LABEL, collate, encode_causal_lm, encode_prompts
from fedmoe_app.data.tokenizer import train_tokenizer
from fedmoe_app.tasks.classification import encode_classification
from fedmoe_app.tasks.multiple_choice import encode_multiple_choice

BOS, EOS, PAD = 1, 2, 0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Without merges: one token a byte."""
    return train_tokenizer(["abc"], 515)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(encoded) == len(text)
    return encoded


def test_classification_keeps_the_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["abcd", "abcdefgh"], "label": [3, 0]})
    encoded = encode_classification(dataset, tokenizer, max_length=6)
    assert encoded == [
        {"input_ids": [BOS, *ids(tokenizer, "abcd"), EOS], "labels": 3},
        {"input_ids": [BOS, *ids(tokenizer, "abcd"), EOS], "labels": 0},
    ]
    assert encoded.num_cut == 1


def test_causal_lm_has_its_loss_on_the_response_only(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"prompt": ["abc"], "response": ["de"]})
    encoded = encode_causal_lm(dataset, tokenizer, max_length=7)
    response = [*ids(tokenizer, "de"), EOS]
    expected = [BOS, *ids(tokenizer, "abc"), *response]
    assert encoded == [{"input_ids": expected, "labels": [IGNORED_LABEL] * 4 + response}]
    assert encoded.num_cut == 0


@pytest.mark.parametrize(
    ("prompt", "response", "kept_prompt", "kept_response", "ends"),
    [
        ("abcdefgh", "xyz", "efgh", "xyz", True),  # the prompt loses its left
        ("abcdefgh", "qrstuvwxyz", "gh", "qrstuv", False),  # a quarter of it stays
        ("a", "qrstuvwxyz", "a", "qrstuvw", False),  # a short prompt stays whole
        # The room is 8 tokens; response and end take 7, but a quarter of it is the prompt's.
        ("abcdefgh", "stuvwx", "gh", "stuvwx", False),
    ],
)
def test_causal_lm_too_long(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    response: str,
    kept_prompt: str,
    kept_response: str,
    ends: bool,
) -> None:
    dataset = Dataset.from_dict({"prompt": [prompt], "response": [response]})
    encoded = encode_causal_lm(dataset, tokenizer, max_length=9)
    tail = ids(tokenizer, kept_response) + [EOS] * ends
    head = [BOS, *ids(tokenizer, kept_prompt)]
    assert encoded == [{"input_ids": head + tail, "labels": [IGNORED_LABEL] * len(head) + tail}]
    assert encoded.num_cut == 1


def test_encoder_decoder_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"prompt": ["abc", "abcdef"], "response": ["de", "defghi"]})
    encoded = encode_causal_lm(dataset, tokenizer, max_length=5, encoder_decoder=True)
    assert encoded == [
        {"input_ids": [BOS, *ids(tokenizer, "abc"), EOS], "labels": [*ids(tokenizer, "de"), EOS]},
        {"input_ids": [BOS, *ids(tokenizer, "abc"), EOS], "labels": ids(tokenizer, "defgh")},
    ]
    assert encoded.num_cut == 1


def test_an_empty_data_set(tokenizer: PreTrainedTokenizerFast) -> None:
    empty: dict[str, list[object]] = {"text": [], "label": [], "prompt": [], "response": []}
    dataset = Dataset.from_dict(empty)
    assert encode_classification(dataset, tokenizer, 8) == []
    assert encode_causal_lm(dataset, tokenizer, 8) == []


def test_collate_classification() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": 1}, {"input_ids": [8], "labels": 0}]
    batch = collate(rows, pad_token_id=PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_collate_causal_lm_pads_labels_by_themselves() -> None:
    rows = [{"input_ids": [5, 6], "labels": [9, 9, 2]}, {"input_ids": [8], "labels": [2]}]
    batch = collate(rows, pad_token_id=7)
    assert batch["input_ids"].tolist() == [[5, 6], [8, 7]]
    assert batch["labels"].tolist() == [[9, 9, 2], [2, IGNORED_LABEL, IGNORED_LABEL]]


def choice(prompt: str, *options: str, answer: int = 0) -> Dataset:
    return Dataset.from_dict({"prompt": [prompt], "options": [list(options)], "answer": [answer]})


def test_options_follow_the_same_prompt_after_a_space(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = choice("abc:", "de", "f", "gh", answer=1)
    encoded = encode_multiple_choice(dataset, tokenizer, max_length=9)
    assert encoded == [
        {
            "input_ids": [BOS, *ids(tokenizer, "abc:")],
            "labels": 1,
            "options": [ids(tokenizer, text) for text in (" de", " f", " gh")],
            "texts": ["de", "f", "gh"],
        }
    ]
    assert encoded.num_cut == 0


@pytest.mark.parametrize(
    ("prompt", "kept_prompt", "kept_options"),
    [
        # 9 tokens, less the first and the end of sequence: 7 for prompt and longest option.
        ("abcdefgh", "efgh", [" q", " rs"]),  # the prompt loses its left
        ("abcdefgh", "h", [" q", " rstuv"]),  # but a quarter of the room is its own
        ("abcdefgh", "h", [" q", " rstuvwxyz"]),  # then options lose their ends
        ("", "", [" q", " rstuvwxyz"]),
    ],
)
def test_questions_that_are_too_long(
    tokenizer: PreTrainedTokenizerFast, prompt: str, kept_prompt: str, kept_options: list[str]
) -> None:
    dataset = choice(prompt, *(option[1:] for option in kept_options))
    encoded = encode_multiple_choice(dataset, tokenizer, max_length=9)
    room = 7 - len(kept_prompt)
    assert encoded[0]["input_ids"] == [BOS, *ids(tokenizer, kept_prompt)]
    assert encoded[0]["options"] == [ids(tokenizer, text[:room]) for text in kept_options]
    assert encoded.num_cut == 1


def test_encoder_decoder_options_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = choice("abcdef", "de", "fghijk")
    encoded = encode_multiple_choice(dataset, tokenizer, max_length=5, encoder_decoder=True)
    assert encoded[0]["input_ids"] == [BOS, *ids(tokenizer, "abc"), EOS]
    assert encoded[0]["options"] == [ids(tokenizer, "de"), ids(tokenizer, "fghi")]
    assert encoded.num_cut == 1


def test_prompts_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"prompt": ["abc", "abcdef"]})
    assert encode_prompts(dataset, tokenizer, 5) == [
        [BOS, *ids(tokenizer, "abc")],
        [BOS, *ids(tokenizer, "cdef")],
    ]
    assert encode_prompts(dataset, tokenizer, 5, encoder_decoder=True) == [
        [BOS, *ids(tokenizer, "abc"), EOS],
        [BOS, *ids(tokenizer, "abc"), EOS],
    ]
