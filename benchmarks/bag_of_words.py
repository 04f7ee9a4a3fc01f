"""How hard are the tasks? A linear model on counted words, all training data in one place.

    python -m benchmarks.bag_of_words

Logistic regression on the presence of lower-case words (those in at least two training texts),
AdamW, 30 epochs. Data and caps are those of ``benchmarks.baselines``.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.baselines import DATA, settings_of
from benchmarks.cells import SHARED_DATA, print_markdown, run_config
from fedmoe_app import parse_run_config
from fedmoe_app.data.sources import load_text_data

EPOCHS, BATCH_SIZE, LEARNING_RATE = 30, 256, 0.01


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for data in DATA:
        if data == "embedded" or (SHARED_DATA / data).is_dir():
            config = parse_run_config(run_config(settings_of(data)))
            source = load_text_data(config.data)
            assert source.test is not None
            score = accuracy(source.train, source.test, len(source.label_names))
            rows.append((data, str(len(source.train)), f"{score:.3f}"))
    print_markdown(("data", "training texts", "accuracy"), rows)


def accuracy(train: Dataset, test: Dataset, num_classes: int) -> float:
    """Fit on ``train`` and return the share of ``test`` that is right."""
    torch.manual_seed(0)
    words = [set(re.findall(r"\w+", text.lower())) for text in train["text"]]
    counts = Counter(word for text in words for word in text)
    index = {word: i for i, word in enumerate(w for w, n in counts.items() if n > 1)}
    features, labels = presence(train, index), torch.tensor(train["label"][:])
    model = nn.Linear(len(index), num_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(model(features[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    right = model(presence(test, index)).argmax(1) == torch.tensor(test["label"][:])
    return float(right.float().mean())


def presence(dataset: Dataset, index: dict[str, int]) -> Tensor:
    """Return 1 where a text has a word, ``[texts, words]``."""
    features = torch.zeros(len(dataset), len(index))  # [texts, words]
    for row, text in enumerate(dataset["text"]):
        known = [index[w] for w in re.findall(r"\w+", text.lower()) if w in index]
        features[row, known] = 1.0
    return features


if __name__ == "__main__":
    main()
