"""From text to padded batches of token ids.

Padding goes right, up to the longest row of the batch. The order of the rows is the caller's.
Text longer than the context is cut; how many rows were cut is returned, to be reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100  # what PyTorch's cross-entropy leaves out


class Row(TypedDict):
    """One encoded example; ``labels`` is a class index or one token id per position."""

    input_ids: list[int]
    labels: int | list[int]


class Encoded(list[Row]):
    """Encoded examples in the order of the data set, a plain list but for its count.

    Attributes:
        num_cut: rows that did not fit into the context and were cut.
    """

    def __init__(self, rows: Iterable[Row], num_cut: int) -> None:
        """Take the rows and the number of them that were cut."""
        super().__init__(rows)
        self.num_cut = num_cut


def encode_classification(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    """Encode the columns ``text`` and ``label``.

    The tokenizer's own special tokens are added. A text of more than ``max_length`` tokens loses
    its end, but not its closing special token.
    """
    start, end = _special_tokens(tokenizer)
    room = max_length - len(start) - len(end)
    whole = _token_ids(tokenizer, dataset["text"])
    rows = [
        Row(input_ids=start + ids[:room] + end, labels=label)
        for ids, label in zip(whole, dataset["label"], strict=True)
    ]
    return Encoded(rows, sum(len(ids) > room for ids in whole))


def encode_causal_lm(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoder_decoder: bool = False,
) -> Encoded:
    """Encode the columns ``prompt`` and ``response``; the loss is on the response only.

    A decoder-only model gets ``prompt response eos`` in one sequence, after the beginning token
    where the tokenizer uses one; the labels of the prompt are ``IGNORED_LABEL``. When that is more
    than ``max_length`` tokens, the prompt loses tokens from its left until it takes no more than a
    quarter of the room; only then the response loses its end, eos included, for the model
    must not learn to stop in the middle of a sentence.

    An encoder-decoder model gets the prompt with its special tokens as input and ``response eos``
    as labels, each cut at its end to ``max_length``.
    """
    start, end = _special_tokens(tokenizer)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows, num_cut = [], 0
    prompts, responses = (_token_ids(tokenizer, dataset[name]) for name in ("prompt", "response"))
    for prompt, response in zip(prompts, responses, strict=True):
        response = response + eos
        if encoder_decoder:
            room = max_length - len(start) - len(end)
            ids, labels = start + prompt[:room] + end, response[:max_length]
            cut = len(prompt) > room or len(response) > max_length
        else:
            head, labels = _fit(prompt, response, max_length - len(start))
            ids, labels = start + head + labels, [IGNORED_LABEL] * len(start + head) + labels
            cut = len(ids) < len(start + prompt + response)
        rows.append(Row(input_ids=ids, labels=labels))
        num_cut += cut
    return Encoded(rows, num_cut)


def _fit(prompt: list[int], response: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut prompt and response to ``room`` tokens together, by the rule of encode_causal_lm."""
    kept = min(len(prompt), max(room - len(response), room // 4))
    return prompt[len(prompt) - kept :], response[: room - kept]


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    texts = list(texts)
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's context; they are cut here.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and after a text by itself."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad rows to a batch.

    Args:
        rows: at least one :class:`Row`, all of the same task.
        pad_token_id: what input ids are filled up with; labels are with ``IGNORED_LABEL``.

    Returns:
        ``input_ids`` and ``attention_mask`` [B, S] int64, S the longest input; ``labels`` int64,
        [B] for classification, else [B, T] with T the longest label row.
    """
    inputs = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    mask = [[1] * len(ids) for ids in inputs]
    return {
        "input_ids": _pad(inputs, pad_token_id),
        "attention_mask": _pad(mask, 0),
        "labels": torch.tensor(labels)
        if isinstance(labels[0], int)
        else _pad(labels, IGNORED_LABEL),
    }


def _pad(sequences: Sequence[Any], value: int) -> Tensor:
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([ids + [value] * (longest - len(ids)) for ids in sequences])  # [B, longest]
