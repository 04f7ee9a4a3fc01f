"""Multiple choice by the likelihood of each option as the continuation of the question.

Training takes the language-modelling loss of the right option, as instruction tuning does: one
forward a question, the same for every family, and the model stays a language model. Scoring asks
which option is the most likely, as EleutherAI's lm-evaluation-harness does: ``acc`` compares the
sums of the tokens' log-probabilities, ``acc_norm`` the sums divided by the option's characters,
which takes away the advantage of short options. Options are not padded to an equal number, so no
filler can win; where two are equally likely, the first counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    Row,
    drop_tokenless,
    encode_multiple_choice,
    options_have_tokens,
)
from fedmoe_app.tasks.base import Batch, Sample, Score, Task, TaskSetting
from fedmoe_app.tasks.causal_lm import CausalLM


def make(setting: TaskSetting) -> Task:
    """Return the task of a run with ``data.task = "multiple-choice"``."""
    data, tokenizer = setting.data, setting.tokenizer
    normalise = data.metric == "acc-norm"
    return MultipleChoice(tokenizer, data.max_length, setting.encoder_decoder, normalise)


class MultipleChoice(CausalLM):
    """Multiple choice; decoder-only and encoder-decoder models.

    The end of sequence is learnt after the right option but is no part of an option's likelihood,
    as in the harness.
    """

    columns = ("prompt", "options", "answer")
    by_token = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        encoder_decoder: bool,
        normalise: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length, encoder_decoder)
        self.normalise = normalise
        self.metric = "acc-norm" if normalise else "accuracy"

    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise ``prompt`` and ``options``; ``labels`` is the right option's index."""
        rows = encode_multiple_choice(
            dataset, self.tokenizer, self.max_length, self.encoder_decoder
        )
        return drop_tokenless(rows, options_have_tokens, "option")

    def collate(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """Make a training batch of :meth:`training_row`."""
        return super().collate([self.training_row(row) for row in rows], device)

    def training_row(self, row: Row) -> Row:
        """Return a question with its right option and the end of sequence."""
        eos = self.tokenizer.eos_token_id
        return self._sequence(row, _right(row), [] if eos is None else [eos])

    def described(self, columns: Sequence[str]) -> str:
        """Say nothing: options follow the question as they stand."""
        return ""

    def notes(self, row: Row) -> list[str]:
        """Return the options that are not learnt."""
        others = [text for i, text in enumerate(row["texts"]) if i != _right(row)]
        return [f"other options: {' | '.join(others)}"]

    def score_rows(self, model: PreTrainedModel, rows: Sequence[Row]) -> Score:
        """Count the questions whose right option is the most likely one.

        The loss of a question is the mean cross-entropy of its right option's tokens.
        """
        sums = self.log_likelihoods(model, rows)
        loss = sum(
            -scores[_right(row)] / len(row["options"][_right(row)])
            for row, scores in zip(rows, sums, strict=True)
        )
        hits = sum(
            self._choice(row, scores) == _right(row) for row, scores in zip(rows, sums, strict=True)
        )
        return Score(loss, hits, len(rows))

    @torch.no_grad()
    def log_likelihoods(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[list[float]]:
        """Return the log-probability, in nats, of each option of each row.

        At most as many sequences as there are rows go through the model at once.
        """
        sequences = [(row, index) for row in rows for index in range(len(row["options"]))]
        flat: list[float] = []
        for start in range(0, len(sequences), max(1, len(rows))):
            flat += self._sums(model, sequences[start : start + len(rows)])
        rest = iter(flat)
        return [[next(rest) for _ in row["options"]] for row in rows]

    def samples(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[Sample]:
        """Return ``prompt``, ``expected`` and ``chosen``, the option that is the most likely."""
        return [
            {
                "prompt": self._text(row["input_ids"]),
                "expected": row["texts"][_right(row)],
                "chosen": row["texts"][self._choice(row, scores)],
            }
            for row, scores in zip(rows, self.log_likelihoods(model, rows), strict=True)
        ]

    def _sums(self, model: PreTrainedModel, sequences: Sequence[tuple[Row, int]]) -> list[float]:
        rows = [self._sequence(row, index, []) for row, index in sequences]
        logits, labels = self.predict(model, super().collate(rows, model.device))
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        parts = losses.split([len(row["options"][index]) for row, index in sequences])
        return [-float(part.sum()) for part in parts]

    def _sequence(self, row: Row, index: int, end: list[int]) -> Row:
        """Return one option of a question as a row of :class:`CausalLM`."""
        prompt, option = row["input_ids"], row["options"][index] + end
        if self.encoder_decoder:
            return Row(input_ids=prompt, labels=option)
        return Row(input_ids=prompt + option, labels=[IGNORED_LABEL] * len(prompt) + option)

    def _choice(self, row: Row, scores: Sequence[float]) -> int:
        lengths = [len(text) if self.normalise else 1 for text in row["texts"]]
        norms = [score / length for score, length in zip(scores, lengths, strict=True)]
        return norms.index(max(norms))


def _right(row: Row) -> int:
    label = row["labels"]
    assert isinstance(label, int)
    return label
