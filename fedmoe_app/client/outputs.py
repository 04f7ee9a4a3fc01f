"""What a client's model puts out, for the parts of a scheme that look at it.

In a training step: logits, labels and features of the batch, the client's label counts, and the
logits of the received model, which are worked out once a round before training. Outside of
training: sums over the received model's outputs.

Shapes: I items (examples, or answer tokens), B examples, S tokens, C classes or the vocabulary, D
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.client.recall import NOTHING, Recalled
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.state import Tensors
from fedmoe_app.moe.training.adapt import classification_head
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.parts import OfOutput
from fedmoe_app.schemes.sums import add_named
from fedmoe_app.schemes.views import EMPTY, Outputs
from fedmoe_app.tasks.base import Batch, Task


class FeatureTap:
    """Context manager that notes what the head of a model sees of each example."""

    def __init__(self, model: PreTrainedModel) -> None:
        name = classification_head(model)
        self._head: nn.Module = model.get_submodule(name) if name else model.get_output_embeddings()
        self._seen: Tensor = EMPTY

    def __enter__(self) -> FeatureTap:
        """Start to listen."""
        # Before those that a task adds for a forward: it sees all tokens.
        self._handle = self._head.register_forward_pre_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop to listen."""
        self._handle.remove()

    def _note(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._seen = args[0]

    def of(self, batch: Batch) -> Tensor:
        """Return the features of the batch that the model saw last, ``[B, D]``.

        They are those of the last token that is not padding, which classifies; of the only one
        where the head gets no others.
        """
        seen = self._seen
        if seen.dim() == 2:  # [B, D]: the family has picked already
            return seen
        if seen.shape[1] == 1:
            return seen[:, 0]
        last = batch.attention_mask.sum(1) - 1  # [B]
        return seen[torch.arange(len(last), device=last.device), last]


@dataclass
class StepOutputs:
    """What the parts of the loss see of a training step's outputs.

    Attributes:
        labels: all right classes of the client's training examples, to count them.
        teacher: logits of the received model, ``[n, C]`` by example; or empty.
        recalled: features that the client sent into sums, by example; or none.
        tap: where a part reads features.
    """

    labels: Tensor
    teacher: Tensor = EMPTY
    recalled: Recalled = NOTHING
    tap: FeatureTap | None = None
    _counts: Tensor = field(default_factory=lambda: EMPTY)

    def of(
        self, logits: Tensor, labels: Tensor, batch: Batch, examples: Sequence[int]
    ) -> dict[str, Any]:
        """Return the fields of :class:`fedmoe_app.schemes.views.LocalStep` that hold outputs.

        Args:
            logits, labels: from :meth:`fedmoe_app.tasks.base.Task.predict`.
            batch: what the model was given.
            examples: positions of its examples among all.
        """
        if not len(self._counts):
            counts = torch.bincount(self.labels, minlength=logits.shape[1])  # [C]
            self._counts = counts.float().to(logits.device)
        teacher, recalled = (
            kept[list(examples)].to(logits.device) if len(kept) else EMPTY
            for kept in (self.teacher, self.recalled.features)
        )
        return {
            "logits": logits.float(),
            "labels": labels,
            "label_counts": self._counts,
            "teacher": teacher,
            "features": self.tap.of(batch) if self.tap is not None else EMPTY,
            "recalled": recalled,
            "recalled_round": self.recalled.server_round,
        }


def all_labels(rows: Sequence[Row], encoder_decoder: bool) -> Tensor:
    """Return every label that is learnt: a class an example, or the answers' tokens.

    Args:
        rows: encoded examples.
        encoder_decoder: whether the model is one; any other never predicts the first token.
    """
    found: list[int] = []
    for row in rows:
        labels = row["labels"]
        if isinstance(labels, int):
            found.append(labels)
        else:
            found += [label for label in labels[0 if encoder_decoder else 1 :] if label >= 0]
    return torch.tensor(found, dtype=torch.int64)


@contextmanager
def step_outputs(
    plan: Plan,
    model: PreTrainedModel,
    rows: Sequence[Row],
    teacher: Tensor,
    recalled: Recalled = NOTHING,
) -> Iterator[StepOutputs | None]:
    """Give the outputs that the parts of the loss read; None if no part does."""
    if not plan.needs_outputs:
        yield None
        return
    outputs = StepOutputs(all_labels(rows, model.config.is_encoder_decoder), teacher, recalled)
    if not plan.needs_features:
        yield outputs
        return
    with FeatureTap(model) as outputs.tap:
        yield outputs


def received_logits(
    model: PreTrainedModel, task: Task, rows: Sequence[Row], batch_size: int
) -> Tensor:
    """Return the logits of a model in eval mode, one item an example, ``[n, C]`` float32."""
    batches = _predictions(model, task, rows, batch_size)
    return torch.cat([logits.float().cpu() for _, logits, _ in batches])


def sums_of_outputs(
    model: PreTrainedModel,
    task: Task,
    rows: Sequence[Row],
    batch_size: int,
    statistics: Sequence[OfOutput],
    note: Callable[[Tensor], None] = lambda features: None,
) -> Tensors:
    """Return the statistics of a model's outputs on examples, float32, by ``Statistic/name``.

    ``note`` is given the features of each batch, ``[I, D]`` float64, in the order of the rows.
    """
    totals: Tensors = {}
    with FeatureTap(model) as tap:
        for batch, logits, labels in _predictions(model, task, rows, batch_size):
            out = Outputs(tap.of(batch).double().cpu(), logits.float().cpu(), labels.cpu())
            note(out.features)
            for statistic in statistics:
                add_named(totals, type(statistic).__name__, statistic.of_output(out))
    return {name: total.float() for name, total in totals.items()}


@torch.no_grad()
def _predictions(
    model: PreTrainedModel, task: Task, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = task.collate(rows[start : start + batch_size], model.device)
        yield (batch, *task.predict(model, batch))
