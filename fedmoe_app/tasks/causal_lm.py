"""Language modelling: instruction tuning, conversations, plain text.

Generated answers against reference answers, as GSM8K is scored.

A reference that ends in ``#### 72`` (Cobbe et al. 2021, arXiv:2110.14168), or that is nothing but
a number, is compared by value with the answer's number: the one after ``####`` where the model
writes that, else the last number of the answer. These are the filters ``strict-match`` and
``flexible-extract`` of EleutherAI's lm-evaluation-harness in one. How numbers may be written:
:mod:`fedmoe_app.tasks.answer_numbers`. Any other reference is compared as text, without case, outer
space and a closing full stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    Row,
    drop_tokenless,
    response_has_tokens,
)
from fedmoe_app.data.language.chat_template import stop_ids
from fedmoe_app.data.language.encode import RowEncoder, encode_rows, row_encoder
from fedmoe_app.tasks.answer_numbers import first_number, has_number, last_number, whole_number
from fedmoe_app.tasks.base import Batch, Sample, Score, Task, TaskSetting
from fedmoe_app.tasks.generation import check_generation_fits, generate


def make(setting: TaskSetting) -> Task:
    """Return the task of a run with ``data.task = "causal-lm"``."""

    data = setting.data
    kind = ExactMatch if data.metric == "exact-match" else CausalLM
    length, new_tokens = data.max_length, data.max_new_tokens
    return kind(setting.tokenizer, length, setting.encoder_decoder, new_tokens, data)


class CausalLM(Task):
    """Language modelling: the loss covers the answers' tokens only, or all of a plain text."""

    metric = "token accuracy"
    columns: tuple[str, ...] = ("prompt", "response")
    by_token = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        encoder_decoder: bool,
        max_new_tokens: int = 64,
        data: DataConfig | None = None,
    ) -> None:
        """Take the run's data section where rows may be conversations, which need it."""
        super().__init__(tokenizer, max_length)
        self.encoder_decoder = encoder_decoder
        self.max_new_tokens = max_new_tokens
        self._data = data

    def encoder(self, columns: Sequence[str]) -> RowEncoder:
        """Return what encodes rows of these columns (see :mod:`fedmoe_app.data.language.rows`)."""
        return row_encoder(
            columns, self.tokenizer, self.max_length, self.encoder_decoder, self._data
        )

    def described(self, columns: Sequence[str]) -> str:
        """Name the way that rows of these columns are laid out, and what of them is learnt."""
        last = self._data is not None and self._data.train_on == "last"
        turns = "the last answer" if last else "all answers"
        learnt = f", learning {turns} (data.train-on)" if "messages" in columns else ""
        return f"by {self.encoder(columns).described}{learnt}"

    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise; ``labels`` is -100 outside of what is learnt."""
        rows, eos = self._rows(dataset), self.tokenizer.eos_token_id
        return drop_tokenless(
            rows, lambda row: response_has_tokens(row, eos, self.encoder_decoder), "response"
        )

    def _rows(self, dataset: Dataset) -> Encoded:
        return encode_rows(dataset, self.encoder(dataset.column_names))

    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return next-token logits ``[items, V]`` of the response tokens."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.encoder_decoder:
            logits, labels = model(**inputs, labels=batch.labels).logits, batch.labels
        else:
            # Position s predicts token s + 1.
            logits, labels = model(**inputs).logits[:, :-1], batch.labels[:, 1:]
        scored = labels != IGNORED_LABEL  # [B, S]
        return logits[scored], labels[scored]

    def collate(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """Pad on the right; the decoder of an encoder-decoder model sees the response."""
        batch = super().collate(rows, device)
        if not self.encoder_decoder:
            return batch
        mask = (batch.labels != IGNORED_LABEL).long()
        return Batch(batch.input_ids, batch.attention_mask, batch.labels, decoder_mask=mask)

    def answer(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[str]:
        """Generate the response to each row's prompt, greedily."""
        if not rows:
            return []
        prompts = [self._prompt(row) for row in rows]
        of_chats = any("prompt_length" in row for row in rows)
        stops = self.stop_ids if of_chats else ()
        return generate(model, self.tokenizer, prompts, self.max_new_tokens, stops)

    def samples(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[Sample]:
        """Return ``prompt``, ``expected`` and ``generated`` of each row, as in the context."""
        return [
            {
                "prompt": self._text(self._prompt(row)),
                "expected": self._expected(row),
                "generated": generated,
            }
            for row, generated in zip(rows, self.answer(model, rows), strict=True)
        ]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer of a conversation, beside the tokenizer's own end."""
        return stop_ids(self.tokenizer, self._data) if self._data else ()

    def _prompt(self, row: Row) -> list[int]:
        if "prompt_length" in row:
            return row["input_ids"][: row["prompt_length"]]
        labels = row["labels"]
        if self.encoder_decoder or isinstance(labels, int):
            return row["input_ids"]
        return [i for i, label in zip(row["input_ids"], labels, strict=True) if label < 0]

    def _expected(self, row: Row) -> str:
        if "prompt_length" in row:
            return self._text(row["input_ids"][row["prompt_length"] :]).strip()
        labels = row["labels"]
        assert isinstance(labels, list)
        return self._text([label for label in labels if label != IGNORED_LABEL])

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


_MARK = "####"


class ExactMatch(CausalLM):
    """Instruction tuning scored by the share of generated answers that are right.

    Training is that of :class:`CausalLM`. An item is an example, and its loss the mean
    cross-entropy of its response's tokens, so that long responses count no more than short ones.
    """

    metric = "exact match"
    by_token = False

    def check_fits(self, model: PreTrainedModel, name: str) -> None:
        """Refuse a model whose context is too short for a prompt and a generated answer."""
        check_generation_fits(model, name, self.max_length, self.max_new_tokens)

    def _rows(self, dataset: Dataset) -> Encoded:
        """Tokenise as :class:`CausalLM`; keep the whole prompt and the reference beside it."""
        return encode_rows(dataset, self.encoder(dataset.column_names), with_questions=True)

    @torch.no_grad()
    def score_rows(self, model: PreTrainedModel, rows: Sequence[Row]) -> Score:
        """Generate an answer to each row and count the matches."""
        batch = self.collate(rows, model.device)
        logits, labels = self.predict(model, batch)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        parts = losses.split([_num_scored(row) for row in rows])
        loss = sum(float(part.mean()) for part in parts)
        answers = zip(self.answer(model, rows), rows, strict=True)
        hits = sum(is_match(answer, row["reference"]) for answer, row in answers)
        return Score(loss, hits, len(rows))

    def _prompt(self, row: Row) -> list[int]:
        return row["prompt"]

    def _expected(self, row: Row) -> str:
        return row["reference"]


def _num_scored(row: Row) -> int:
    labels = row["labels"]
    assert isinstance(labels, list)
    return sum(label != IGNORED_LABEL for label in labels)


def is_match(answer: str, reference: str) -> bool:
    """Tell whether a generated answer gives the reference's result."""
    expected = _reference_number(reference)
    if expected is None:
        return _plain(answer) == _plain(reference)
    return final_number(answer) == expected


def final_number(text: str) -> Fraction | None:
    """Return the first number after ``####``, else the last number of the text, if any."""
    _, _, marked = text.partition(_MARK)
    return first_number(marked) if has_number(marked) else last_number(text)


def _reference_number(reference: str) -> Fraction | None:
    if _MARK in reference:
        return final_number(reference.rpartition(_MARK)[2])
    return whole_number(reference)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()
