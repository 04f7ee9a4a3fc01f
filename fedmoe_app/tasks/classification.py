"""Classification of texts, by a new head or by the words of the labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.data import parse_template
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.data.encoding import (
    Columns,
    Encoded,
    Row,
    drop_tokenless,
    special_tokens,
    token_ids,
)
from fedmoe_app.data.tokenizer import label_token
from fedmoe_app.tasks.base import Batch, Task, TaskSetting

_EMPTY = Dataset.from_dict({"text": [""], "label": [0]})


def make(setting: TaskSetting) -> Task:
    """Return the task of a run with ``data.task = "classification"``."""
    tokenizer, length, template = setting.tokenizer, setting.data.max_length, setting.template
    if setting.head == "label-words":
        return LabelWords(tokenizer, length, setting.label_names, template)
    return SequenceClassification(tokenizer, length, template)


class SequenceClassification(Task):
    """Classification by a linear head on the last token (transformers' own head).

    Raises:
        ConfigError: the template leaves no token for the text.
    """

    columns = ("text", "label")

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, template: str = "{text}"
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.template = template
        self._around = around_text(tokenizer, template)
        length = sum(map(len, self._around))
        if template != "{text}" and length >= max_length:
            raise ConfigError(
                f"data.template = {json.dumps(template, ensure_ascii=False)}: takes {length} "
                f"tokens, special ones included, and data.max-length = {max_length} leaves none "
                "for the text; raise data.max-length or shorten the template"
            )

    def encode(self, dataset: Dataset) -> Encoded:
        """Tokenise ``text``; ``labels`` is the class index."""
        rows = encode_classification(dataset, self.tokenizer, self.max_length, self._around)
        empty = encode_classification(_EMPTY, self.tokenizer, self.max_length, self._around)[0]
        return drop_tokenless(rows, lambda row: text_has_tokens(row, empty), "text")

    def described(self, columns: Sequence[str]) -> str:
        """Say what stands around a text."""
        if self.template == "{text}":
            return ""
        return f"every text stands in {json.dumps(self.template, ensure_ascii=False)}"

    def predict(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return class logits ``[B, C]``."""
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return out.logits, batch.labels

    def confusion(self, given: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Return counts ``[C, C]``."""
        flat = (labels * classes + given).cpu()
        return torch.bincount(flat, minlength=classes * classes).view(classes, classes)


class LabelWords(SequenceClassification):
    """Classification by label words: the model's own logits of the words after the last token.

    Serves every family, also those without a classification head: what a family does after its
    output embeddings (a scale, a soft cap, a bias), it does here, too. An encoder-decoder model
    takes one decoder step.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        label_names: Sequence[str],
        template: str = "{text}",
    ) -> None:
        super().__init__(tokenizer, max_length, template)
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


def encode_classification(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    around: tuple[list[int], list[int]] | None = None,
) -> Encoded:
    """Encode the columns ``text`` and ``label``.

    A text that does not fit into ``max_length`` tokens loses its end, but nothing of what stands
    around it: the template, from :func:`around_text`, or else the tokenizer's own special tokens.
    """
    start, end = around or special_tokens(tokenizer)
    room = max_length - len(start) - len(end)

    def encode(batch: Columns) -> tuple[list[Row], int]:
        whole = token_ids(tokenizer, batch["text"])
        rows = [
            Row(input_ids=start + ids[:room] + end, labels=label)
            for ids, label in zip(whole, batch["label"], strict=True)
        ]
        return rows, sum(len(ids) > room for ids in whole)

    return Encoded.of(dataset, encode)


def around_text(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[list[int], list[int]]:
    """Return the tokens before and after a text: special ones and those of a template.

    Text and template are tokenised apart, so that every text has the same around it.

    Args:
        tokenizer: of the model.
        template: with one ``{text}``.
    """
    start, end = special_tokens(tokenizer)
    before, after = parse_template(template)
    (letter,) = token_ids(tokenizer, ["a"])
    # Beside a letter: some tokenizers put a space before what they take for the beginning.
    (whole,) = token_ids(tokenizer, [f"a{after}"])
    parts = whole[: len(letter)] == letter
    suffix = whole[len(letter) :] if parts else token_ids(tokenizer, [after])[0]
    return start + token_ids(tokenizer, [before])[0], suffix + end


def text_has_tokens(row: Row, empty: Row) -> bool:
    """Tell whether a text to classify gave more than an empty one: its special tokens."""
    return len(row["input_ids"]) > len(empty["input_ids"])


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
