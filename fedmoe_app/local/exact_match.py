"""Generated answers against reference answers, as GSM8K is scored.

A reference that ends in ``#### 72`` (Cobbe et al. 2021, arXiv:2110.14168), or that is nothing but
a number, is compared by value with the answer's number: the one after ``####`` where the model
writes that, else the last number of the answer. These are the filters ``strict-match`` and
``flexible-extract`` of EleutherAI's lm-evaluation-harness in one. Any other reference is compared
as text, without case, outer space and a closing full stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel

from fedmoe_app.data.encoding import IGNORED_LABEL, Encoded, Row, encode_prompts
from fedmoe_app.local.tasks import CausalLM, Score

_MARK = "####"
# The minus is a sign only where nothing to subtract from stands before it: "10-5" ends in 5.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class ExactMatch(CausalLM):
    """Instruction tuning scored by the share of generated answers that are right.

    Training is that of :class:`CausalLM`. An item is an example, and its loss the mean
    cross-entropy of its response's tokens, so that long responses count no more than short ones.
    """

    metric = "exact match"

    def _rows(self, dataset: Dataset) -> Encoded:
        """Tokenise as :class:`CausalLM`; keep the whole prompt and the reference beside it."""
        rows = super()._rows(dataset)
        prompts = encode_prompts(dataset, self.tokenizer, self.max_length, self.encoder_decoder)
        for row, prompt, reference in zip(rows, prompts, dataset["response"], strict=True):
            row["prompt"], row["reference"] = prompt, reference
        return rows

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


def final_number(text: str) -> Decimal | None:
    """Return the first number after ``####``, else the last number of the text, if any."""
    _, mark, marked = text.partition(_MARK)
    if mark and (found := _NUMBER.search(marked)):
        return _value(found.group())
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _reference_number(reference: str) -> Decimal | None:
    if _MARK in reference:
        return final_number(reference.rpartition(_MARK)[2])
    whole = _NUMBER.fullmatch(reference.strip())
    return _value(whole.group()) if whole else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace("$", "").replace(",", ""))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()
