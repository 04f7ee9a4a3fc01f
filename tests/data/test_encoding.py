from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from fedmoe_app.data.encoding import IGNORED_LABEL, collate, encode_causal_lm, encode_classification
from fedmoe_app.data.tokenizer import train_tokenizer

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
