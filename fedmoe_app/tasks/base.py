"""Tasks: how examples become batches, a loss and a score.

Every task sees a model through the same three calls, so that the training loop, the server's
evaluation and the schemes know nothing of heads and labels.

Shapes: B examples in a batch, S tokens, C classes, V tokens in the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import Encoded, Row, collate

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
    """Sums over scored items (examples or response tokens), so that scores can be added up.

    Attributes:
        loss: cross-entropy in nats.
        correct: items that are right.
        items: how many.
        confusion: counts ``[C, C]`` int64 on the CPU, right class by given class; None where the
            task has no classes.
    """

    loss: float = 0.0
    correct: int = 0
    items: int = 0
    confusion: Tensor | None = field(default=None, compare=False)

    def __add__(self, other: Score) -> Score:
        """Add the sums of two scores."""
        both = [each for each in (self.confusion, other.confusion) if each is not None]
        confusion = both[0] + both[1] if len(both) == 2 else next(iter(both), None)
        return Score(
            self.loss + other.loss,
            self.correct + other.correct,
            self.items + other.items,
            confusion,
        )

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy an item, in nats."""
        return self.loss / self.items

    @property
    def accuracy(self) -> float:
        """Share of items whose most likely class, token or option, or whose answer, is right."""
        return self.correct / self.items


@dataclass(frozen=True)
class TaskSetting:
    """What a task is made for.

    Attributes:
        data: the run's data section.
        tokenizer: the model's.
        encoder_decoder: whether the model is one.
        head: the resolved way of classifying, ``sequence`` or ``label-words``.
        label_names: class names in index order; only for classification.
        template: what stands around a text, with one ``{text}``; only for classification.
    """

    data: DataConfig
    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    head: str
    label_names: Sequence[str]
    template: str = "{text}"


class Task(ABC):
    """A task on a tokenizer; subclasses say what is predicted.

    Attributes:
        metric: name of what :attr:`Score.accuracy` is for this task.
        columns: uniform columns that it needs, see :mod:`fedmoe_app.data.columns`.
        encoder_decoder: whether rows have a part for the decoder of their own.
        by_token: whether an item of a score is a token, not an example.
    """

    metric = "accuracy"
    columns: tuple[str, ...] = ()
    encoder_decoder = False
    by_token = False

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
        given = logits.argmax(-1)
        confusion = self.confusion(given, labels, logits.shape[-1])
        return Score(float(loss), int((given == labels).sum()), len(labels), confusion)

    def confusion(self, given: Tensor, labels: Tensor, classes: int) -> Tensor | None:
        """Count classes ``[items]`` by given ones ``[items]``; None where these are tokens."""
        return None

    def score_rows(self, model: PreTrainedModel, rows: Sequence[Row]) -> Score:
        """Return the metric of one batch of rows; subclasses may need more than one forward."""
        return self.score(model, self.collate(rows, model.device))

    def samples(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[Sample]:
        """Return what a model in eval mode answers to rows, as text; a task may have no samples."""
        return []

    def check_fits(self, model: PreTrainedModel, name: str) -> None:  # noqa: B027
        """Refuse a model that this task cannot be scored with; ``name`` is that of the config.

        Raises:
            ConfigError: naming what does not fit.
        """

    def training_row(self, row: Row) -> Row:
        """Return an encoded row as it is trained on."""
        return row

    def described(self, columns: Sequence[str]) -> str:
        """Say how rows of these columns become tokens; "" where there is but one way."""
        return ""

    def notes(self, row: Row) -> list[str]:
        """Return what a preview says of an encoded row beside its tokens."""
        return []


def evaluate(model: PreTrainedModel, task: Task, rows: Sequence[Row], batch_size: int) -> Score:
    """Score rows in order; the result does not depend on torch's random state."""
    model.eval()
    total = Score()
    for start in range(0, len(rows), batch_size):
        total += task.score_rows(model, rows[start : start + batch_size])
    return total
