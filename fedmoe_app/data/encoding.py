"""From text to padded batches of token ids.

Padding goes right, up to the longest row of the batch. The order of the rows is the caller's.
Text longer than the context is cut; how many rows were cut is returned, to be reported.

Leave out rows whose text gives no token, as rows with an empty text are left out.

Some tokenizers drop characters that they do not know, so that a text of nothing else is empty for
the model. A classifier would read the label off padding, an empty option would always be the most
likely one, and the loss of an empty response is the mean of nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedmoe_app.data.encoded import EncodeBatch, Encoded, Row

_log = logging.getLogger(__name__)


def drop_tokenless(rows: Encoded, has_tokens: Callable[[Row], bool], what: str) -> Encoded:
    """Return the rows that have tokens, with one warning about the others.

    Args:
        rows: encoded examples.
        has_tokens: tells of a row whether the text that counts gave a token of its own.
        what: the name of that text, for the warning.
    """
    kept = np.fromiter(map(has_tokens, rows), dtype=bool, count=len(rows))
    if kept.all():
        return rows
    _log.warning(
        "dropped %d of %d examples, whose %s gives no token with this model's tokenizer (the first "
        "is example %d)",
        len(rows) - kept.sum(),
        len(rows),
        what,
        int(kept.argmin()) + 1,
    )
    return rows.keep(kept)


def response_has_tokens(row: Row, eos_token_id: int | None, encoder_decoder: bool) -> bool:
    """Tell whether a response gave a token besides its end, and there is a position to train."""
    labels = row["labels"]
    assert isinstance(labels, list)
    own = [label for label in labels if label != IGNORED_LABEL]
    if own and own[-1] == eos_token_id:
        own.pop()
    # Position s of a decoder-only model predicts token s + 1: nothing predicts the first.
    trained = labels if encoder_decoder else labels[1:]
    return bool(own) and any(label != IGNORED_LABEL for label in trained)


__all__ = [
    "IGNORED_LABEL",
    "Columns",
    "Encoded",
    "Row",
    "causal_lm_encoder",
    "collate",
    "encode_causal_lm",
    "encode_prompts",
    "fit",
    "last",
    "special_tokens",
    "token_ids",
]

T = TypeVar("T")
Columns = Mapping[str, Any]  # of equal length

IGNORED_LABEL = -100  # what PyTorch's cross-entropy leaves out


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
    return Encoded.of(dataset, causal_lm_encoder(tokenizer, max_length, encoder_decoder))


def causal_lm_encoder(
    tokenizer: PreTrainedTokenizerBase, max_length: int, encoder_decoder: bool
) -> EncodeBatch:
    """Return what encodes some rows as :func:`encode_causal_lm` does."""
    start, end = special_tokens(tokenizer)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(batch: Columns) -> tuple[list[Row], int]:
        rows, num_cut = [], 0
        prompts, responses = (token_ids(tokenizer, batch[name]) for name in ("prompt", "response"))
        for prompt, response in zip(prompts, responses, strict=True):
            response = response + eos
            if encoder_decoder:
                room = max_length - len(start) - len(end)
                ids, labels = start + prompt[:room] + end, response[:max_length]
                cut = len(prompt) > room or len(response) > max_length
            else:
                head, labels = fit(prompt, response, max_length - len(start))
                ids, labels = start + head + labels, [IGNORED_LABEL] * len(start + head) + labels
                cut = len(ids) < len(start + prompt + response)
            rows.append(Row(input_ids=ids, labels=labels))
            num_cut += cut
        return rows, num_cut

    return encode


def encode_prompts(
    dataset: Dataset | Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoder_decoder: bool = False,
) -> list[list[int]]:
    """Encode the column ``prompt`` alone, for a model that is to answer it.

    A decoder-only model's prompt begins with the beginning token, where there is one, and loses
    its left when it is too long; an encoder-decoder model's has its special tokens and loses its
    end, as in :func:`encode_causal_lm`.
    """
    start, end = special_tokens(tokenizer)
    prompts = token_ids(tokenizer, dataset["prompt"])
    if encoder_decoder:
        room = max_length - len(start) - len(end)
        return [start + prompt[:room] + end for prompt in prompts]
    return [start + last(prompt, max_length - len(start)) for prompt in prompts]


def last(ids: list[int], room: int) -> list[int]:
    """Return the last ``room`` tokens."""
    return ids[max(0, len(ids) - room) :]


def fit(prompt: list[T], response: list[T], room: int) -> tuple[list[T], list[T]]:
    """Cut prompt and response to ``room`` tokens together, by the rule of encode_causal_lm."""
    kept = min(len(prompt), max(room - len(response), room // 4))
    return prompt[len(prompt) - kept :], response[: room - kept]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Return the token ids of texts, without special tokens."""
    texts = list(texts)
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's context; they are cut here.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
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
