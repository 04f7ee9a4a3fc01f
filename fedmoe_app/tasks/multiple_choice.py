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
    Columns,
    Encoded,
    Row,
    drop_tokenless,
    last,
    special_tokens,
    token_ids,
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


def encode_multiple_choice(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoder_decoder: bool = False,
) -> Encoded:
    """Encode the columns ``prompt``, ``options`` and ``answer``.

    In a decoder-only model an option is tokenised as the continuation of its prompt, after a
    space. One token of the context is left for the end of sequence. All options of a question
    follow the same prompt tokens, so that they are compared fairly: what the longest option leaves
    of the context is the prompt's, which loses its left; only when the prompt would keep less than
    a quarter of the room, options lose their ends. An encoder-decoder model's prompt and options
    are each cut at their end to ``max_length``.
    """
    start, end = special_tokens(tokenizer)
    num_eos = 0 if tokenizer.eos_token_id is None else 1

    def encode(batch: Columns) -> tuple[list[Row], int]:
        prompts = token_ids(tokenizer, batch["prompt"])
        all_options = _options(batch, tokenizer, encoder_decoder)
        rows, num_cut = [], 0
        examples = zip(prompts, all_options, batch["options"], batch["answer"], strict=True)
        for prompt, options, texts, answer in examples:
            longest = max(len(option) for option in options)
            if encoder_decoder:
                head, room = prompt[: max_length - len(start) - len(end)], max_length - num_eos
                ids = start + head + end
            else:
                room = max_length - len(start) - num_eos
                head = last(prompt, max(room - longest, room // 4))
                ids, room = start + head, room - len(head)
            cut = [option[:room] for option in options]
            rows.append(Row(input_ids=ids, labels=answer, options=cut, texts=texts))
            num_cut += len(head) < len(prompt) or longest > room
        return rows, num_cut

    return Encoded.of(dataset, encode)


def _options(
    batch: Columns, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool
) -> list[list[list[int]]]:
    """Return the token ids of every question's options."""
    all_texts = batch["options"]
    alone = iter(token_ids(tokenizer, [text for texts in all_texts for text in texts]))
    if encoder_decoder:
        return [[next(alone) for _ in texts] for texts in all_texts]
    # The prompt's last line is context enough to part the tokens, and much shorter.
    lines = [prompt.rpartition("\n")[2] for prompt in batch["prompt"]]
    pairs = zip(lines, all_texts, strict=True)
    wholes = iter(
        token_ids(tokenizer, [f"{line} {text}" for line, texts in pairs for text in texts])
    )
    return [
        [_continuation(line, next(wholes), next(alone)) for _ in texts]
        for line, texts in zip(token_ids(tokenizer, lines), all_texts, strict=True)
    ]


def _continuation(line: list[int], whole: list[int], alone: list[int]) -> list[int]:
    """Return what follows the line; the option by itself if the tokens do not part there."""
    parts = whole[: len(line)] == line and len(whole) > len(line)
    return whole[len(line) :] if parts else alone


def options_have_tokens(row: Row) -> bool:
    """Tell whether every option of a question gave a token."""
    return all(row["options"])
