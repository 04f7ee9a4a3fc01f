"""What PFL-MoE keeps on a client: a personal copy of the model, and the gate that mixes it in.

Guo et al. 2020, arXiv:2012.15589; the output is that of :mod:`fedmoe_app.client.personal`. θ_i and
g_i train on the loss of the mixed output. ``joint = false``: the global copy trains as in FedAvg,
before, and the *received* global copy takes part in the mixture, frozen: it is what the client has
when it predicts in the next round. ``joint = true``: one loss trains all three.

The output of a client's own model in PFL-MoE: two copies of a model, mixed by a gate.

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

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from fedmoe_app.client.train import Factor, constant, micro_batches, train_batches
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import TrainConfig
from fedmoe_app.data.encoding import IGNORED_LABEL, Encoded, Row
from fedmoe_app.moe.layers import find_moe_layers, read_state, write_state
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.parts import PersonalCopy
from fedmoe_app.tasks.base import Batch, Task, evaluate
from fedmoe_app.tasks.setup import Setup


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


_COPY, _GATE = "personal.", "mixing-gate."  # prefixes of what is kept between rounds


class OwnModel:
    """θ_i and g_i of one client in one round.

    Attributes:
        model: the personal copy.
        task: the client's task on the mixed output.
        joint: whether the mixed output trains the global copy, too.
    """

    def __init__(self, setup: Setup, part: PersonalCopy, kept: Mapping[str, Tensor]) -> None:
        """Start from what was kept, else from the model's values, which are the received ones.

        Args:
            setup: whose model has no trainables attached; it is copied.
            part: the hyper-parameters.
            kept: what :meth:`tensors` returned in the client's last round; empty if lost.
        """
        self.model = copy.deepcopy(setup.model)
        self.joint = part.joint
        self._layers = find_moe_layers(self.model)
        embeddings: Any = self.model.get_input_embeddings()
        self._gate = MixingGate(embeddings.weight.shape[1]).to(self.model.device)
        self._gate_learning_rate = part.gate_learning_rate
        self._plain_task = setup.task
        self.task = Mixture(setup.task, self.model, self._gate, part.joint)
        self._restore(kept)

    def train(
        self,
        received: PreTrainedModel,
        rows: Sequence[Row],
        config: TrainConfig,
        seed: int,
        factor: Factor = constant,
    ) -> None:
        """Train θ_i and g_i beside the received global copy, on FedAvg's batches of the round."""
        received.eval()
        with self.training(config, factor) as step:
            for rows_of_step in train_batches(rows, config, seed):
                for part in micro_batches(rows_of_step, config):
                    batch = self.task.collate(part, received.device)
                    share = len(part) / len(rows_of_step)
                    (share * self.task.loss(received, batch)).backward()
                step()

    @contextmanager
    def training(
        self, config: TrainConfig, factor: Factor = constant
    ) -> Iterator[Callable[[], None]]:
        """Make θ_i and g_i trainable; yield what to call after the ``backward`` of each step.

        A fresh AdamW, as for the global copy. Each of the two is clipped by its own norm.
        """
        with Trainables(self.model, self._layers) as trainables:
            copies = trainables.leaves()
            gate = list(self._gate.parameters())
            groups: list[dict[str, Any]] = [
                {"params": copies, "lr": config.learning_rate},
                {"params": gate, "lr": self._gate_learning_rate},
            ]
            optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)

            schedule = LambdaLR(optimiser, factor)

            def step() -> None:
                trainables.count_step()
                if config.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(copies, config.max_grad_norm)
                    torch.nn.utils.clip_grad_norm_(gate, config.max_grad_norm)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)

            self.model.train()
            yield step
            trainables.merge()
            self.model.eval()

    def metrics(
        self, common: PreTrainedModel, train: Sequence[Row], test: Sequence[Row], batch_size: int
    ) -> dict[str, float]:
        """Return the mean of g_i(x), and the personal copy's accuracy without the mixture.

        Both are of the test examples. Where there are none, the gate's mean is of the training
        examples, and there is no accuracy.

        Args:
            common: the global copy, which the gate takes the embeddings of.
            train, test: the client's examples.
            batch_size: examples in a batch.
        """
        found = {"mixing-gate": self.task.mean_share(common, test or train, batch_size)}
        if test:
            score = evaluate(self.model, self._plain_task, test, batch_size)
            found["personal-accuracy"] = score.accuracy
        return found

    def is_finite(self) -> bool:
        """Return whether θ_i and g_i hold numbers only: training may diverge."""
        parameters = [*self.model.parameters(), *self._gate.parameters()]
        return all(bool(p.isfinite().all()) for p in parameters)

    def tensors(self) -> Tensors:
        """Return θ_i and g_i by name, as the node keeps them."""
        state = read_state(self.model, self._layers)
        found = {f"{_COPY}{key}": tensor for key, tensor in state.named()}
        return found | {f"{_GATE}{key}": t.clone() for key, t in self._gate.state_dict().items()}

    def _restore(self, kept: Mapping[str, Tensor]) -> None:
        gate = _with_prefix(kept, _GATE)
        if not gate:
            return
        state = ModelState()
        for key, tensor in _with_prefix(kept, _COPY).items():
            state.insert(key, tensor)
        write_state(self.model, self._layers, state)
        self._gate.load_state_dict(gate)


def own_model(
    setup: Setup, part: PersonalCopy | None, kept: Mapping[str, Tensor]
) -> OwnModel | None:
    """Return the client's own model; None unless the scheme has one.

    Raises:
        ConfigError: the task is scored by more than one forward (options, generation).
    """
    if part is None:
        return None
    if type(setup.task).score_rows is not Task.score_rows:
        raise ConfigError(
            f'scheme = "pflmoe" with data.metric = "{setup.task.metric}": the mixture is scored by '
            'its logits; choose data.metric = "auto" with classification or causal-lm'
        )
    return OwnModel(setup, part, kept)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
