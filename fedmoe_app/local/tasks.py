"""Tasks: how examples become batches, a loss and a score.

Every task sees a model through the same three calls, so that the training loop, the server's
evaluation and the schemes know nothing of heads and labels.

Shapes: B examples in a batch, S tokens, C classes, V tokens in the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config import ConfigError
from fedmoe_app.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    Row,
    collate,
    encode_causal_lm,
    encode_classification,
)
from fedmoe_app.data.tokenizer import label_token
from fedmoe_app.local.generation import generate

Sample = dict[str, str]  # prompt, expected, and what the model made of it


@dataclass(frozen=True)
class Batch:
    """Padded tensors of a batch.

    Attributes:
        input_ids: ``[B, S]`` int64.
        attention_mask: ``[B, S]`` int64, 0 on padding.
        labels: ``[B]`` classes, or ``[B, S]`` tokens with -100 where there is no loss.
        decoder_mask: ``[B, S']`` for an encoder-decoder model's decoder, else None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    decoder_mask: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """Sums over scored items (examples or response tokens), so that scores can be added up."""

    loss: float = 0.0
    correct: int = 0
    items: int = 0

    def __add__(self, other: Score) -> Score:
        """Add the sums of two scores."""
        return Score(self.loss + other.loss, self.correct + other.correct, self.items + other.items)

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy an item, in nats."""
        return self.loss / self.items

    @property
    def accuracy(self) -> float:
        """Share of items whose most likely class, token or option, or whose answer, is right."""
        return self.correct / self.items


class Task(ABC):
    """A task on a tokenizer; subclasses say what is predicted."""

    metric = "accuracy"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    @abstractmethod
    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise a data set into rows of ``input_ids`` and ``labels``; counts what was cut."""

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits ``[items, C]`` or ``[items, V]`` and the right indices ``[items]``."""

    def collate(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """Pad rows on the right to the longest of them."""
        pad = self.tokenizer.pad_token_id
        tensors = collate(rows, pad)
        return Batch(**{name: tensor.to(device) for name, tensor in tensors.items()})

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the batch, a scalar with graph."""
        logits, labels = self.predict(model, batch)
        return F.cross_entropy(logits.float(), labels)

    @torch.no_grad()
    def score(self, model: PreTrainedModel, batch: Batch) -> Score:
        """Return the batch's summed loss and hits."""
        logits, labels = self.predict(model, batch)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return Score(float(loss), int((logits.argmax(-1) == labels).sum()), len(labels))

    def score_rows(self, model: PreTrainedModel, rows: Sequence[Row]) -> Score:
        """Return the metric of one batch of rows; subclasses may need more than one forward."""
        return self.score(model, self.collate(rows, model.device))

    def samples(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[Sample]:
        """Return what a model in eval mode answers to rows, as text; a task may have no samples."""
        return []


class SequenceClassification(Task):
    """Classification by a linear head on the last token (transformers' own head)."""

    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise ``text``; ``labels`` is the class index."""
        return encode_classification(dataset, self.tokenizer, self.max_length)

    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return class logits ``[B, C]``."""
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return out.logits, batch.labels


class LabelWords(SequenceClassification):
    """Classification by label words: the model's own logits of the words after the last token.

    Serves every family, also those without a classification head: what a family does after its
    output embeddings (a scale, a soft cap, a bias), it does here, too. An encoder-decoder model
    takes one decoder step.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str]
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.label_ids = torch.tensor(label_token_ids(tokenizer, label_names))  # [C]

    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return label-word logits ``[B, C]``."""
        label_ids = self.label_ids.to(batch.input_ids.device)
        if model.config.is_encoder_decoder:
            start = batch.input_ids.new_full(
                (len(batch.labels), 1), model.config.decoder_start_token_id
            )
            out = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                decoder_input_ids=start,
            )
            return out.logits[:, 0, label_ids], batch.labels
        last = batch.attention_mask.sum(1) - 1  # [B]
        with _last_only(model, last):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        if logits.shape[1] > 1:  # a family that takes the output embeddings' weights itself
            logits = logits[torch.arange(len(last), device=last.device), last, None]  # [B, 1, V]
        return logits[:, 0, label_ids], batch.labels

    def collate(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """Pad on the right; an encoder-decoder model's decoder sees one token an example."""
        batch = super().collate(rows, device)
        ones = torch.ones_like(batch.labels)[:, None]  # [B, 1]
        return Batch(batch.input_ids, batch.attention_mask, batch.labels, decoder_mask=ones)


class CausalLM(Task):
    """Instruction tuning: the loss covers the response's tokens only."""

    metric = "token accuracy"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        encoder_decoder: bool,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.encoder_decoder = encoder_decoder
        self.max_new_tokens = max_new_tokens

    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise ``prompt`` and ``response``; ``labels`` is -100 outside the response."""
        return encode_causal_lm(
            dataset, self.tokenizer, self.max_length, encoder_decoder=self.encoder_decoder
        )

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
        return generate(model, self.tokenizer, prompts, self.max_new_tokens)

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

    def _prompt(self, row: Row) -> list[int]:
        labels = row["labels"]
        if self.encoder_decoder or isinstance(labels, int):
            return row["input_ids"]
        return [i for i, label in zip(row["input_ids"], labels, strict=True) if label < 0]

    def _expected(self, row: Row) -> str:
        labels = row["labels"]
        assert isinstance(labels, list)
        return self._text([label for label in labels if label != IGNORED_LABEL])

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@contextmanager
def _last_only(model: PreTrainedModel, last: Tensor) -> Iterator[None]:
    """Let the output embeddings see one token a row, ``last`` ``[B]``: logits are ``[B, 1, V]``."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # [B, S, H]
        return (hidden[torch.arange(len(last), device=last.device), last, None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def label_token_ids(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> list[int]:
    """Return one token for each label: a reserved ``<label_i>``, else the name's first token.

    Raises:
        ConfigError: if two labels begin with the same token.
    """
    vocabulary = tokenizer.get_vocab()
    if label_token(0) in vocabulary:
        return [vocabulary[label_token(index)] for index in range(len(label_names))]
    ids = [tokenizer(f" {name}", add_special_tokens=False).input_ids[0] for name in label_names]
    by_token: dict[int, str] = {}
    for name, token in zip(label_names, ids, strict=True):
        if token in by_token:
            raise ConfigError(
                f'model.head = "label-words": labels "{by_token[token]}" and "{name}" begin with '
                'the same token; choose model.head = "sequence" or other data.label-names'
            )
        by_token[token] = name
    return ids


def evaluate(model: PreTrainedModel, task: Task, rows: Sequence[Row], batch_size: int) -> Score:
    """Score rows in order; the result does not depend on torch's random state."""
    model.eval()
    total = Score()
    for start in range(0, len(rows), batch_size):
        total += task.score_rows(model, rows[start : start + batch_size])
    return total
