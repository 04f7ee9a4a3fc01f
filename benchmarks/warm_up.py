"""Does a language-model warm-up of the preset raise the federated accuracy?

    python -m benchmarks.warm_up [--workers 2]

People fine-tune pre-trained models; a preset has random weights. Here it is first trained as a
language model for under a minute on the part of the embedded corpus that is in neither the training
nor the test set. Then FedAvg on the embedded task, 10 clients, Dirichlet 0.5, 8 rounds, 3 seeds,
two learning rates, from both starting points. Prints the accuracy on the server's test set after
the last round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from benchmarks.cells import measure, print_markdown
from fedmoe_app import LoadSpec, load_model
from fedmoe_app.compare.plan import Partition, read_schemes
from fedmoe_app.compare.tables import mean_and_std
from fedmoe_app.config.files import build_once
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.data.corpus import load_corpus, recipe_key
from fedmoe_app.data.encoding import IGNORED_LABEL, Row
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.shown.duration import duration
from fedmoe_app.tasks.causal_lm import CausalLM

PRESET = "qwen3moe-tiny"
SEEDS = (1, 2, 3)
CLIENTS = 10
STEPS = 600
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
MAX_LENGTH = 48
REPORT_EVERY = 100  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    tokenizer = embedded_tokenizer()
    folder = build_once(
        cache_dir() / f"warm-up-{PRESET}-{recipe_key()}-{STEPS}",
        lambda draft: _warm_up(PRESET, tokenizer, draft),
    )
    starts = [
        Partition(f"{rate:g}, {start}", {"train.learning-rate": rate, "model.name": model})
        for rate in (1e-3, 2e-3)
        for start, model in (("random", PRESET), ("warmed up", str(folder)))
    ]
    settings = {"num-server-rounds": 8, "data.max-train-examples": 4800}
    rows = measure(
        "warm-up", read_schemes("fedavg"), starts, settings, SEEDS, CLIENTS, workers, False
    )
    print_markdown(
        ("learning rate, initial weights", "accuracy (mean ± std, 3 seeds)"),
        [(row.partition, mean_and_std(row.accuracy)) for row in rows],
    )


def _warm_up(preset: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model = load_model(LoadSpec.of(preset, tokenizer, task="causal-lm"))
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
    generator = torch.Generator().manual_seed(0)
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
        if step % REPORT_EVERY == 0:
            left = (time.monotonic() - started) / step * (steps - step)
            print(f"warm-up: loss {losses[-1]:.2f}, about {duration(left)} left", flush=True)
    model.eval()
    return losses


def _rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool
) -> list[Row]:
    """Encode texts for next-token prediction; an encoder-decoder model continues the first half."""
    encoded = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]
    if not encoder_decoder:
        return [Row(input_ids=ids, labels=[IGNORED_LABEL, *ids[1:]]) for ids in encoded]
    return [Row(input_ids=ids[: len(ids) // 2], labels=ids[len(ids) // 2 :]) for ids in encoded]


if __name__ == "__main__":
    main()
