"""Tasks on a real small model: losses against transformers' own, padding, label words."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from fedmoe_app import ConfigError, LoadSpec, load_model
from fedmoe_app.data.encoding import IGNORED_LABEL
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.tasks.base import Batch, Score, Task, evaluate
from fedmoe_app.tasks.causal_lm import CausalLM
from fedmoe_app.tasks.classification import LabelWords, SequenceClassification, label_token_ids
from tests.moe.families import build

TOKENIZER = embedded_tokenizer()
TEXTS = Dataset.from_dict(
    {"text": ["Return a copy.", "A much longer text about graphs and nodes."], "label": [0, 1]}
)
CHATS = Dataset.from_dict(
    {"prompt": ["Say one.", "Say two, and say it slowly:"], "response": ["one", "two two two"]}
)
CPU = torch.device("cpu")


def model(preset: str, task: str) -> PreTrainedModel:
    return load_model(LoadSpec.of(preset, TOKENIZER, task=task, num_labels=2))


CASES: list[tuple[str, Task]] = [
    ("qwen3moe-tiny", SequenceClassification(TOKENIZER, 24)),
    ("olmoe-tiny", LabelWords(TOKENIZER, 24, ["no", "yes"])),
    ("switch-tiny", LabelWords(TOKENIZER, 24, ["no", "yes"])),
    ("olmoe-tiny", CausalLM(TOKENIZER, 24, encoder_decoder=False)),
    ("switch-tiny", CausalLM(TOKENIZER, 24, encoder_decoder=True)),
]


@pytest.mark.parametrize(("preset", "task"), CASES)
def test_padding_changes_no_score(preset: str, task: Task) -> None:
    """A batch of two texts of different length scores like the two texts one by one."""
    is_lm = isinstance(task, CausalLM)
    net = model(preset, "causal-lm" if is_lm else "classification")
    rows = task.encode(CHATS if is_lm else TEXTS)
    together = evaluate(net, task, rows, batch_size=2)
    apart = evaluate(net, task, rows, batch_size=1)
    assert together.items == apart.items
    assert together.correct == apart.correct
    assert together.loss == pytest.approx(apart.loss, rel=1e-4)


def test_causal_lm_loss_is_that_of_transformers() -> None:
    task, net = CausalLM(TOKENIZER, 24, encoder_decoder=False), model("olmoe-tiny", "causal-lm")
    batch = task.collate(task.encode(CHATS), CPU)
    expected = net(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert task.loss(net, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_causal_lm_scores_the_response_and_its_end_only() -> None:
    task, net = CausalLM(TOKENIZER, 64, encoder_decoder=False), model("olmoe-tiny", "causal-lm")
    rows = task.encode(CHATS)
    responses = TOKENIZER(list(CHATS["response"]), add_special_tokens=False).input_ids
    assert evaluate(net, task, rows, 2).items == sum(len(ids) + 1 for ids in responses)
    for row, ids in zip(rows, responses, strict=True):
        assert [t for t in row["labels"] if t != IGNORED_LABEL] == [*ids, TOKENIZER.eos_token_id]


def test_label_words_are_last_hidden_state_times_output_embeddings() -> None:
    task, net = LabelWords(TOKENIZER, 24, ["no", "yes"]), model("olmoe-tiny", "classification")
    batch = task.collate(task.encode(TEXTS), CPU)
    logits, labels = task.predict(net, batch)
    full = net(batch.input_ids, attention_mask=batch.attention_mask).logits  # [B, S, V]
    last = batch.attention_mask.sum(1) - 1
    expected = full[torch.arange(2), last][:, task.label_ids]
    torch.testing.assert_close(logits, expected)
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("family", "settings"),
    [("GraniteMoe", {"logits_scaling": 8.0}), ("Phimoe", {"lm_head_bias": True})],
)
def test_label_words_take_the_models_own_scale_and_bias(
    family: str, settings: dict[str, Any]
) -> None:
    net = build(family, **settings)
    if net.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(net.get_output_embeddings().bias)
    task = LabelWords(TOKENIZER, 24, ["no", "yes"])
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    batch = Batch(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([0, 1]))
    logits, _ = task.predict(net, batch)
    full = net(ids, attention_mask=batch.attention_mask).logits[torch.tensor([0, 1]), [2, 1]]
    torch.testing.assert_close(logits, full[:, task.label_ids])


def test_presets_take_reserved_label_tokens() -> None:
    ids = label_token_ids(TOKENIZER, ["same", "same"])
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["<label_0>", "<label_1>"]


def test_other_tokenizers_take_first_tokens_and_refuse_a_clash() -> None:
    class Plain:
        """A tokenizer without reserved label tokens, one token a word."""

        def get_vocab(self) -> dict[str, int]:
            return {" good": 1, " news": 2, " bad": 3}

        def __call__(self, text: str, add_special_tokens: bool) -> object:
            ids = [self.get_vocab()[f" {word}"] for word in text.split()]
            return type("Encoding", (), {"input_ids": ids})()

    plain = Plain()
    assert label_token_ids(plain, ["good", "bad news"]) == [1, 3]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r'"good" and "good news" begin with the same token'):
        label_token_ids(plain, ["good", "good news"])  # type: ignore[arg-type]


def test_scores_add_up() -> None:
    total = Score(2.0, 1, 2) + Score(4.0, 2, 2)
    assert (total.mean_loss, total.accuracy) == (1.5, 0.75)
