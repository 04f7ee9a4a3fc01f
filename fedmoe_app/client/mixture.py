"""The output of a client's own model in PFL-MoE: two copies of a model, mixed by a gate.

Guo et al. 2020, arXiv:2012.15589. On client i, for input x:

    y = g_i(x)·f(x; θ_i) + (1 − g_i(x))·f(x; θ)        g_i(x) = sigmoid(w_i·e(x) + b_i)

θ is the global copy, θ_i the personal one; f gives logits, as the experts in the authors' code do.
e(x) is the mean of the input embeddings, taken from the global copy without gradient and scaled to
length 1: the scale of embeddings differs by orders of magnitude between families. It leaves out
padding, and the response that a language model has yet to write.

Shapes: B examples in a batch, S tokens, C classes or tokens, D size of an input embedding; items
are examples, or response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fedmoe_app.data.encoding import IGNORED_LABEL, Encoded, Row
from fedmoe_app.tasks.base import Batch, Task


def mix(personal: Tensor, common: Tensor, share: Tensor) -> Tensor:
    """Mix the logits of the two copies.

    Args:
        personal: f(x; θ_i), ``[items, C]``.
        common: f(x; θ), ``[items, C]``.
        share: g_i(x) of each item, ``[items]``.

    Returns:
        ``[items, C]`` float32.
    """
    weight = share.unsqueeze(1)  # [items, 1]
    return weight * personal.float() + (1 - weight) * common.float()


class MixingGate(nn.Module):
    """g_i: the personal copy's share in the output, 1/2 for every input at first."""

    def __init__(self, hidden_size: int) -> None:
        """Start from zeros: no random number is drawn, so that other draws stay as they are."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, D]`` to ``[B]``, each between 0 and 1."""
        return torch.sigmoid(features @ self.weight + self.bias)


class Mixture(Task):
    """A task on the mixed output; the model that its calls are given is the global copy."""

    def __init__(
        self, task: Task, personal: PreTrainedModel, gate: MixingGate, joint: bool
    ) -> None:
        super().__init__(task.tokenizer, task.max_length)
        self._task = task
        self._personal = personal
        self._gate = gate
        self._joint = joint

    def encode(self, dataset: Dataset) -> Encoded:
        """As the task does."""
        return self._task.encode(dataset)

    def collate(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """As the task does."""
        return self._task.collate(rows, device)

    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return mixed logits ``[items, C]``; the global copy has no graph unless joint."""
        with torch.set_grad_enabled(self._joint and torch.is_grad_enabled()):
            common, labels = self._task.predict(model, batch)
        personal, _ = self._task.predict(self._personal, batch)
        return mix(personal, common, _by_item(self.share(model, batch), batch)), labels

    def share(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return g_i(x) of each example, ``[B]``."""
        return self._gate(mean_embeddings(model, batch))

    @torch.no_grad()
    def mean_share(self, model: PreTrainedModel, rows: Sequence[Row], batch_size: int) -> float:
        """Return the mean of g_i(x) over at least one example."""
        starts = range(0, len(rows), batch_size)
        batches = (self.collate(rows[i : i + batch_size], model.device) for i in starts)
        return float(torch.cat([self.share(model, batch) for batch in batches]).mean())


def mean_embeddings(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return each example's mean input embedding, scaled to length 1, ``[B, D]`` float32."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(batch.input_ids).float()  # [B, S, D]
        mask = _gate_mask(batch).unsqueeze(2)  # [B, S, 1]
        return F.normalize((embeddings * mask).sum(1), dim=-1)


def _gate_mask(batch: Batch) -> Tensor:
    """Return the tokens that the gate sees, ``[B, S]``: real ones, and not the response."""
    mask = batch.attention_mask
    if batch.labels.dim() == 1 or batch.decoder_mask is not None:
        return mask  # classification, or the response is the decoder's
    return mask * (batch.labels == IGNORED_LABEL)


def _by_item(share: Tensor, batch: Batch) -> Tensor:
    """Repeat each example's share ``[B]`` for its items, in the order of ``Task.predict``."""
    if batch.labels.dim() == 1:
        return share
    labels = batch.labels[:, 1:] if batch.decoder_mask is None else batch.labels
    scored = labels != IGNORED_LABEL  # [B, S]
    return share.unsqueeze(1).expand_as(scored)[scored]
