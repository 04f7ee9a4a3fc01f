"""Warm-up: presets start as small language models instead of from random weights.

People fine-tune pre-trained models; a preset has only random weights. Here it is trained for a
minute as a language model on the part of the embedded corpus that is in neither the training nor
the test set, once, and kept in ``$FEDMOE_HOME/cache``. Only the server needs it: clients receive
every value from the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from fedmoe_app.data.cache import build_once
from fedmoe_app.data.corpus import load_corpus, recipe_key
from fedmoe_app.data.encoding import IGNORED_LABEL, Row
from fedmoe_app.local.tasks import CausalLM
from fedmoe_app.moe.loading import load_model
from fedmoe_app.paths import cache_dir

STEPS = 600
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
MAX_LENGTH = 48
_SEED = 0  # one base for all runs, as with a pre-trained model; a run's seed is not in it
_RECIPE_VERSION = 1
_REPORT_EVERY = 100  # steps

logger = logging.getLogger("fedmoe")


def warmed_up(preset: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Return the folder of a preset's warmed-up language model, training it at the first call.

    The folder loads like any local model. The same machine gives the same weights.
    """
    folder = cache_dir() / f"warm-up-{preset}-{recipe_key()}-{_RECIPE_VERSION}"
    return build_once(folder, lambda draft: _warm_up(preset, tokenizer, draft))


def _warm_up(preset: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model = load_model(
        preset,
        task="causal-lm",
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        seed=_SEED,
    )
    encoder_decoder = bool(model.config.is_encoder_decoder)
    rows = _rows(load_corpus().warmup["text"], tokenizer, encoder_decoder)
    train_language_model(model, CausalLM(tokenizer, MAX_LENGTH, encoder_decoder), rows, STEPS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_language_model(
    model: PreTrainedModel, task: CausalLM, rows: Sequence[Row], steps: int
) -> list[float]:
    """Train all parameters on next tokens for a fixed number of steps; return the losses (nats)."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimiser, max(1, steps // 20), steps)
    generator = torch.Generator().manual_seed(_SEED)
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(rows), (BATCH_SIZE,), generator=generator).tolist()
        loss = task.loss(model, task.collate([rows[i] for i in chosen], model.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % _REPORT_EVERY == 0:
            left = (time.monotonic() - started) / step * (steps - step)
            logger.info("warm-up of the base model: loss %.2f, %.0f s left", losses[-1], left)
    model.eval()
    return losses


def _rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool
) -> list[Row]:
    """Encode texts for next-token prediction; an encoder-decoder model continues the first half."""
    encoded = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]
    if not encoder_decoder:
        return [Row(input_ids=ids, labels=[IGNORED_LABEL, *ids[1:]]) for ids in encoded]
    return [
        Row(input_ids=ids[: len(ids) // 2], labels=ids[len(ids) // 2 :]) for ids in encoded
    ]
