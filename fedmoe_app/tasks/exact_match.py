"""Generated answers against reference answers, as GSM8K is scored.

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

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel

from fedmoe_app.data.encoding import IGNORED_LABEL, Encoded, Row
from fedmoe_app.data.language.encode import encode_rows
from fedmoe_app.tasks.answer_numbers import first_number, has_number, last_number, whole_number
from fedmoe_app.tasks.base import Score
from fedmoe_app.tasks.causal_lm import CausalLM
from fedmoe_app.tasks.generation import check_generation_fits

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
