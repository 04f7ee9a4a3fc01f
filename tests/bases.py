"""Base models on the disk: a tiny model of any family with a tokenizer, as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.moe.families import VOCAB, build

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # the ids 0 to 3
WORDS = ("good", "bad", "day", "night", "number", "yes", "no", *map(str, range(40)))


def save_base(folder: Path, family: str, **overrides: Any) -> PreTrainedModel:
    """Write config, random weights and tokenizer; return the model that was written."""
    model = build(family, **overrides)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of :data:`WORDS`, at most ``VOCAB`` in all."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    assert len(vocabulary) <= VOCAB
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
