"""Texts to calibrate on and others to measure perplexity on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.data.corpus import load_corpus
from fedmoe_app.data.files import read_columns
from fedmoe_app.data.reading.columns import Asked
from fedmoe_app.moe.carve.convert import Batch

EMBEDDED = "embedded"
HELD_OUT = 100  # texts of which perplexity is measured, at most
_BATCH = 16


def read_texts(source: str, field: str, seed: int) -> tuple[list[str], list[str]]:
    """Return texts for calibration and others that are held out, both in a random order.

    Args:
        source: :data:`EMBEDDED`, whose held-out texts are its test part, or a data file, of whose
            different texts a tenth is held out.
        field: column of the file, or several, separated by commas, whose texts are joined.
        seed: of the order.

    Raises:
        ConfigError, DataError: a file or column that is not there, or fewer than two texts.
    """
    if source == EMBEDDED:
        corpus = load_corpus()
        held = _shuffled(corpus.test["text"], seed)[:HELD_OUT]
        return _shuffled(corpus.warmup["text"], seed), held
    fields = tuple(name.strip() for name in field.split(","))
    found = read_columns(source, Asked(scalars=fields))
    for name in fields:
        if name not in found.dataset.column_names:
            raise DataError(
                f"{source}: no column {name!r}; choose with --text-field: {', '.join(found.names)}"
            )
    rows = zip(*(found.dataset[name] for name in fields), strict=True)
    joined = ("\n".join(filter(None, row)) for row in rows)
    texts = _shuffled(dict.fromkeys(text for text in joined if text), seed)
    if len(texts) < 2:
        raise ConfigError(f"--texts {source}: {len(texts)} text in {field!r}; give at least 2")
    held_out = min(HELD_OUT, max(1, len(texts) // 10))
    return texts[held_out:], texts[:held_out]


def _shuffled(texts: Iterable[str], seed: int) -> list[str]:
    listed = list(texts)
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(seed))
    return [listed[i] for i in order.tolist()]


def tokens_of(batches: Sequence[Batch]) -> int:
    """Return the number of real tokens."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def batches_of(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int, tokens: int = 0
) -> list[Batch]:
    """Encode texts, each cut to ``length`` tokens, until there are ``tokens`` (0: all of them).

    Texts of similar length share a batch, padded on the right.
    """
    rows, total = [], 0
    for text in texts:
        if tokens and total >= tokens:
            break
        rows.append(tokenizer(text, truncation=True, max_length=length)["input_ids"])
        total += len(rows[-1])
    rows.sort(key=len)
    return list(_padded(tokenizer, [row for row in rows if len(row) > 1]))


def _padded(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> Iterator[Batch]:
    for start in range(0, len(rows), _BATCH):
        part = {"input_ids": rows[start : start + _BATCH]}
        padded = tokenizer.pad(part, return_tensors="pt")
        yield {key: padded[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def perplexity(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Return e to the mean cross entropy, in nats, over all tokens but the first of each text."""
    loss, count = 0.0, 0
    for batch in batches:
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        wanted = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        loss += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
        count += int((wanted != -100).sum())
    return math.exp(loss / count) if count else math.nan
