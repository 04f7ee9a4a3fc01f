"""Does a suffix after the text help a causal model whose head is in closed form?

    python -m benchmarks.template [--data FOLDER] [--train 2000] [--test 600] [--seed 0]

The preset smollm2-moe as it is, nothing trained. The head is that of schemes/closedhead.py (LDA,
shrinkage 0.1, bias folded) from the features of the training texts' last tokens, taken with and
without the suffix; accuracy on test texts. A causal model's hidden states do not see what follows,
so one forward gives both. Training and test texts are drawn by the seed; texts are cut to 48 tokens
before the suffix, and float32 runs on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.cells import SHARED_DATA, print_markdown
from fedmoe_app.moe.carve.preset import preset_folder
from fedmoe_app.schemes.closedhead import Sums, lda_head

SUFFIX = '\nThis sentence means in one word:"'
SETS = ("clinc150", "ag_news", "banking77")
MAX_LENGTH, BATCH, SHRINKAGE = 48, 16, 0.1
SPREAD = 1.96  # standard deviations of the 95 % interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", default=SETS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = preset_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for name in arguments.sets:
        train, test = (
            _drawn(arguments.data / name / f"{part}.jsonl.gz", number, arguments.seed)
            for part, number in (("train", arguments.train), ("test", arguments.test))
        )
        classes = 1 + max(train["label"])
        of_train, of_test = (_features(model, tokenizer, part["text"]) for part in (train, test))
        labels, right = torch.tensor(train["label"]), torch.tensor(test["label"])
        plain, suffixed = (
            _accuracy(of_train[:, i], labels, of_test[:, i], right, classes) for i in (0, 1)
        )
        error = SPREAD * (suffixed * (1 - suffixed) / len(right)) ** 0.5
        rows.append((name, str(classes), f"{plain:.3f}", f"{suffixed:.3f} ± {error:.3f}"))
        print(rows[-1], flush=True)
    print_markdown(("data set", "classes", "the text alone", "with the suffix"), rows)


def _drawn(path: Path, number: int, seed: int) -> Dataset:
    whole = load_dataset("json", data_files=str(path), split="train")
    return whole.shuffle(seed=seed).select(range(min(number, len(whole))))


@torch.no_grad()
def _features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Tensor:
    """Return the features of the text's and of the suffix's last token, ``[N, 2, D]`` float64."""
    suffix = tokenizer(SUFFIX)["input_ids"]
    ids = [tokenizer(text)["input_ids"][:MAX_LENGTH] + suffix for text in texts]
    found = torch.empty(len(ids), 2, model.config.hidden_size, dtype=torch.float64)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    for start in range(0, len(ids), BATCH):
        batch = by_length[start : start + BATCH]
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids[i]) for i in batch], batch_first=True
        )  # [B, S]
        lengths = torch.tensor([len(ids[i]) for i in batch])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state  # [B, S, D]
        row = torch.arange(len(batch))
        found[batch, 0] = hidden[row, lengths - len(suffix) - 1].double()
        found[batch, 1] = hidden[row, lengths - 1].double()
    return found


def _accuracy(features: Tensor, labels: Tensor, test: Tensor, right: Tensor, classes: int) -> float:
    """Return the accuracy of the head that ``features`` give, on ``test``."""
    one_hot = F.one_hot(labels, classes).double()  # [N, C]
    sums = Sums(one_hot.sum(0), one_hot.T @ features, features.T @ features)
    head = lda_head(sums, SHRINKAGE, has_bias=False)
    return float(((test @ head.weight.T).argmax(1) == right).double().mean())


if __name__ == "__main__":
    main()
