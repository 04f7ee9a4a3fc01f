"""PFL-MoE's output: mixed logits, the gate and what it sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmoe_app.client.personal import MixingGate, Mixture, mean_embeddings, mix
from fedmoe_app.data.encoding import IGNORED_LABEL
from fedmoe_app.tasks.base import Batch

# Token 0 is padding; the others have embeddings that are easy to average.
EMBEDDINGS = torch.tensor([[9.0, 9.0], [3.0, 0.0], [0.0, 4.0], [6.0, 0.0]])


class Copy(nn.Module):
    """A model that answers every item with the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.embeddings = nn.Embedding.from_pretrained(EMBEDDINGS)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings


def mixture(personal: Copy, gate: MixingGate, joint: bool = False) -> Mixture:
    def predict(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.labels
        if labels.dim() == 2:
            labels = labels[:, 1:] if batch.decoder_mask is None else labels
            labels = labels[labels != IGNORED_LABEL]
        return model.logits.expand(len(labels), -1), labels

    task: Any = SimpleNamespace(tokenizer=None, max_length=8, predict=predict)
    return Mixture(task, personal, gate, joint)  # type: ignore[arg-type]


def batch(labels: list[Any], ids: list[list[int]], decoder_mask: Tensor | None = None) -> Batch:
    input_ids = torch.tensor(ids)
    return Batch(input_ids, (input_ids != 0).long(), torch.tensor(labels), decoder_mask)


TWO = batch([0, 1], [[1, 0], [2, 1]])


def test_logits_are_mixed_item_by_item() -> None:
    personal = torch.tensor([[4.0, 0.0], [1.0, 3.0]])
    common = torch.tensor([[0.0, 2.0], [5.0, -1.0]])
    mixed = mix(personal, common, torch.tensor([0.25, 1.0]))
    assert mixed.tolist() == [[1.0, 1.5], [1.0, 3.0]]


def test_equal_copies_give_their_own_output_whatever_the_gate_says() -> None:
    logits = torch.tensor([[0.5, -2.0], [3.0, 1.0]])
    assert mix(logits, logits, torch.tensor([0.25, 0.75])).tolist() == logits.tolist()


def test_low_precision_is_mixed_in_float32() -> None:
    logits = torch.ones(1, 2, dtype=torch.bfloat16)
    assert mix(logits, logits, torch.ones(1)).dtype == torch.float32


def test_the_gate_starts_at_one_half_and_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    gate = MixingGate(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert gate(torch.randn(2, 3)).tolist() == [0.5, 0.5]


def test_predict_mixes_both_copies_by_the_gate() -> None:
    gate = MixingGate(2)
    gate.bias.data.fill_(torch.logit(torch.tensor(0.25)).item())
    logits, labels = mixture(Copy([4.0, 0.0]), gate).predict(Copy([0.0, 4.0]), TWO)  # type: ignore[arg-type]
    assert torch.allclose(logits, torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(("right", "sign"), [(0, -1), (1, 1)])
def test_the_gradient_moves_the_gate_to_the_better_copy(right: int, sign: int) -> None:
    """The personal copy answers 0, the global one 1: descent raises g where 0 is right."""
    gate = MixingGate(2)
    task = mixture(Copy([2.0, 0.0]), gate)
    task.loss(Copy([0.0, 2.0]), batch([right], [[1, 2]])).backward()  # type: ignore[arg-type]
    # Both logits are 1, so p = 1/2; dL/dg = (±1/2)·2 + (∓1/2)·(−2) = ±2 and dg/db = 1/4.
    assert gate.bias.grad is not None
    assert gate.bias.grad.item() == pytest.approx(sign * 0.5)


@pytest.mark.parametrize("joint", [False, True])
def test_the_global_copy_gets_a_gradient_only_if_joint(joint: bool) -> None:
    personal, common = Copy([1.0, 0.0]), Copy([0.0, 1.0])
    mixture(personal, MixingGate(2), joint).loss(common, TWO).backward()  # type: ignore[arg-type]
    assert personal.logits.grad is not None
    assert (common.logits.grad is not None) == joint


def test_the_gate_sees_the_mean_embedding_of_real_tokens_scaled_to_length_one() -> None:
    found = mean_embeddings(Copy([0.0]), TWO)  # type: ignore[arg-type]
    # Row 0 has token 1 only; row 1 has (0, 4) and (3, 0), a mean along (3, 4).
    assert torch.allclose(found, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    assert not found.requires_grad


def test_the_gate_does_not_see_the_response() -> None:
    """Prompt [1], response [2, 3]: its tokens are inputs, too, but not yet known."""
    language = batch([[IGNORED_LABEL, 2, 3]], [[1, 2, 3]])
    assert mean_embeddings(Copy([0.0]), language).tolist() == [[1.0, 0.0]]  # type: ignore[arg-type]


def test_an_example_without_a_prompt_is_mixed_by_the_bias_alone() -> None:
    language = batch([[2, 3]], [[2, 3]])
    assert mean_embeddings(Copy([0.0]), language).tolist() == [[0.0, 0.0]]  # type: ignore[arg-type]


def gate_by_token() -> MixingGate:
    """g = sigmoid(10) for prompts of token 1, 1/2 for those of token 2."""
    gate = MixingGate(2)
    gate.weight.data.copy_(torch.tensor([10.0, 0.0]))
    return gate


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_the_share_of_an_example_is_repeated_for_its_response_tokens(encoder_decoder: bool) -> None:
    none = IGNORED_LABEL
    if encoder_decoder:
        labels = [[3, 3, none], [3, none, none]]
        ids, mask = [[1, 0], [2, 2]], torch.tensor([[1, 1, 0], [1, 0, 0]])
    else:  # position s predicts token s + 1
        labels = [[none, 3, 3], [none, none, 3]]
        ids, mask = [[1, 3, 3], [2, 2, 3]], None
    task = mixture(Copy([1.0, 1.0]), gate_by_token())
    logits, _ = task.predict(Copy([0.0, 0.0]), batch(labels, ids, mask))  # type: ignore[arg-type]
    high = torch.sigmoid(torch.tensor(10.0)).item()
    assert logits[:, 0].tolist() == pytest.approx([high, high, 0.5])


def test_the_mean_share_is_over_all_examples() -> None:
    task = mixture(Copy([1.0]), gate_by_token())
    task.collate = lambda rows, device: rows[0]  # type: ignore[assignment, return-value]
    common: Any = Copy([0.0])
    common.device = torch.device("cpu")
    rows: Any = [batch([0, 0], [[1], [1]]), batch([0], [[2]])]
    high = torch.sigmoid(torch.tensor(10.0)).item()
    assert task.mean_share(common, rows, 1) == pytest.approx((2 * high + 0.5) / 3)
