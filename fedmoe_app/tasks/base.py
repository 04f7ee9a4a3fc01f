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
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    Row,
    collate,
    drop_tokenless,
    encode_classification,
    response_has_tokens,
    text_has_tokens,
)
from fedmoe_app.data.language.chat_template import stop_ids
from fedmoe_app.data.language.encode import RowEncoder, encode_rows, row_encoder
from fedmoe_app.data.tokenizer import label_token
from fedmoe_app.tasks.generation import generate

_EMPTY = Dataset.from_dict({"text": [""], "label": [0]})

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
        """Tokenise a data set into rows of ``input_ids`` and ``labels``; counts what was cut.

        Rows whose text gives no token are left out, with a warning.
        """

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
        rows = encode_classification(dataset, self.tokenizer, self.max_length)
        empty = encode_classification(_EMPTY, self.tokenizer, self.max_length)[0]
        return drop_tokenless(rows, lambda row: text_has_tokens(row, empty), "text")

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
    """Language modelling: the loss covers the answers' tokens only, or all of a plain text."""

    metric = "token accuracy"

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
        stops = self._stop_ids if of_chats else ()
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
    def _stop_ids(self) -> tuple[int, ...]:
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
        ConfigError: if two labels begin with the same token, or one gives none.
    """
    vocabulary = tokenizer.get_vocab()
    if label_token(0) in vocabulary:
        return [vocabulary[label_token(index)] for index in range(len(label_names))]
    ids = [_first_token(tokenizer, name) for name in label_names]
    by_token: dict[int, str] = {}
    for name, token in zip(label_names, ids, strict=True):
        if token in by_token:
            raise ConfigError(
                f'model.head = "label-words": labels "{by_token[token]}" and "{name}" begin with '
                'the same token; choose model.head = "sequence" or other data.label-names'
            )
        by_token[token] = name
    return ids


def _first_token(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    ids = tokenizer(f" {name}", add_special_tokens=False).input_ids
    if not ids:
        raise ConfigError(
            f'model.head = "label-words": label "{name}" gives no token with this model\'s '
            'tokenizer; choose model.head = "sequence" or other data.label-names'
        )
    return int(ids[0])


def evaluate(model: PreTrainedModel, task: Task, rows: Sequence[Row], batch_size: int) -> Score:
    """Score rows in order; the result does not depend on torch's random state."""
    model.eval()
    total = Score()
    for start in range(0, len(rows), batch_size):
        total += task.score_rows(model, rows[start : start + batch_size])
    return total
