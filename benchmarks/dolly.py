"""One causal-lm run on real text: Dolly by category, eight clients, one category each.

    python -m benchmarks.dolly [--rounds 6]

Prints the table of the run (loss in nats a response token) and texts that the saved model
generates in plain transformers. The model is a preset with a minute of training behind it: the
text shows that the folder works, not that the model knows anything.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.cells import SHARED_DATA
from fedmoe_app import default_run_config, run_in_process
from fedmoe_app.data.columns import format_prompt

PROMPTS = ("What is the capital of France?", "Name three animals that live in the sea.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    folder = SHARED_DATA / "dolly15k"
    if not folder.is_dir():
        raise SystemExit("left out: dolly15k/train.jsonl.gz is not beside the repository")
    with TemporaryDirectory() as output:
        run = default_run_config() | {
            "num-server-rounds": rounds,
            "output-dir": output,
            "data.source": str(folder / "train.jsonl.gz"),
            "data.test-source": str(folder / "test.jsonl.gz"),
            "data.task": "causal-lm",
            "data.context-field": "context",
            "data.partition": "natural",
            "data.partition-by": "domain",
            "data.max-length": 96,
            "data.max-train-examples": 6000,
            "data.max-test-examples": 600,
        }
        generate(run_in_process(run, num_clients=8) / "model")


def generate(folder: Path) -> None:
    """Let the saved model answer, greedily."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt in PROMPTS:
        text = tokenizer.bos_token + format_prompt(prompt)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = model.generate(
            ids.input_ids,
            attention_mask=ids.attention_mask,
            max_new_tokens=30,
            do_sample=False,
            repetition_penalty=1.3,
        )
        answer = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        print(f"{prompt!r} -> {answer!r}")


if __name__ == "__main__":
    main()
