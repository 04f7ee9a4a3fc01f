"""Which Mixture-of-Experts families of the installed transformers can be trained, in which modes.

    python -m benchmarks.families

Builds a small model of every family, runs one federated round of two clients in each mode in this
process, and compares the logits of the exported model in plain transformers with those of the
model that the server holds. Every family runs in a process of its own, so that a crash costs one
row, and its answer is kept in ``$FEDMOE_HOME/benchmarks/families``: a benchmark that was stopped
goes on where it was; ``--again`` starts anew. Prints the table of docs/families.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel

from benchmarks.cells import REPOSITORY, print_markdown
from benchmarks.every_family import (
    classifier_class,
    family_names,
    language_class,
    small_model,
    token_batch,
)
from fedmoe_app import (
    UnsupportedModelError,
    default_run_config,
    find_moe_layers,
    parse_run_config,
    read_metrics,
    run_in_process,
)
from fedmoe_app.client.trial import word_tokenizer
from fedmoe_app.config.paths import home
from fedmoe_app.moe.layers import write_state
from fedmoe_app.report import plots
from fedmoe_app.server.resume import find_checkpoint
from fedmoe_app.tasks.setup import load_setup

LORA = {"model.train": "expert-lora", "model.lora-rank": 4}
WORDS = {"model.head": "label-words"}
TEXTS = {"data.task": "causal-lm"}
# The columns of the table.
MODES: dict[str, dict[str, Any]] = {
    "all": TEXTS,
    "experts": WORDS | {"model.train": "experts"},
    "expert-lora": WORDS | LORA,
    "+ attention": TEXTS | LORA | {"model.attention-lora": True},
    "nf4": TEXTS | LORA | {"model.quantization": "nf4"},
    "int8": WORDS | LORA | {"model.quantization": "int8"},
    "chosen": WORDS
    | {"model.train": "experts", "model.experts-in-memory": "chosen", "scheme": "fedmoe"},
    "head": LORA | {"model.head": "sequence"},
}
HEADERS = ("family", *MODES, "difference", "refused, and why")
SECONDS = 1800  # of one family
CLOSE = 1e-3  # of the largest logit
_LONGEST = 240  # characters of a reason
_YES, _NO, _NONE = "✓", "✗", "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help="run this family here and print its answer as JSON")
    parser.add_argument("--again", action="store_true", help="forget what earlier runs found")
    parser.add_argument("families", nargs="*", help="only these")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_answer(options.one)))
        return
    kept = home() / "benchmarks" / "families"
    if options.again:
        shutil.rmtree(kept, ignore_errors=True)
    names = options.families or family_names()
    answers = {name: _kept_answer(kept, name) for name in names}
    print_markdown(HEADERS, [_row(name, answer) for name, answer in answers.items()])
    print(f"\n{_summary(answers)}")


def _kept_answer(kept: Path, name: str) -> dict[str, Any]:
    """Return a family's answer: kept, or from a process of its own."""
    file = kept / f"{name}-{transformers.__version__}.json"
    if file.is_file():
        kept_answer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept_answer
    command = [sys.executable, "-m", "benchmarks.families", "--one", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            cwd=REPOSITORY,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer = {"crash": f"took more than {SECONDS} s"}
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        answer = {"crash": f"exit code {done.returncode}: {last}"}
    kept.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(answer), encoding="utf-8")
    print(f"{name}: {json.dumps(answer)}", file=sys.stderr)
    return answer


def _answer(name: str) -> dict[str, Any]:
    """Try every mode of a family: what its logits differ by, or why it is refused or failed."""
    _hush()
    config_class = CONFIG_MAPPING[name]
    language, classifier = language_class(config_class), classifier_class(config_class)
    kind = language or classifier
    if kind is None:
        return {"refused": "no language model and no classifier among transformers' auto classes"}
    try:
        layers = find_moe_layers(small_model(name, kind))
    except UnsupportedModelError as error:
        return {"class": kind.__name__, "refused": _short(error)}
    answer: dict[str, Any] = {"class": kind.__name__, "layers": len(layers), "modes": {}}
    for mode, overrides in MODES.items():
        head = classifier if mode == "head" else language
        if head is not None:
            budget = {"fedmoe.experts-per-client": layers[0].top_k + 1}
            answer["modes"][mode] = _try(name, head, budget | overrides)
    return answer


def _hush() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    setattr(plots, "plot_run", lambda path: None)  # noqa: B010  (takes longer than the round)


def _try(name: str, kind: type[PreTrainedModel], overrides: Mapping[str, Any]) -> Any:
    """Return the largest difference of logits, as a share of the largest, or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="fedmoe-families-") as folder:
        base = Path(folder) / "base"
        small_model(name, kind).save_pretrained(base)
        word_tokenizer().save_pretrained(base)
        try:
            run = _one_round(base, overrides)
            return _difference(run, kind)
        except UnsupportedModelError as error:
            return f"refused: {_short(error)}"
        except Exception as error:  # the row says it
            return f"FAILED: {type(error).__name__}: {_short(error)}"


def _one_round(base: Path, overrides: Mapping[str, Any]) -> Path:
    """Run one round of two clients; return the result folder.

    Raises:
        RuntimeError: a client failed.
    """
    rows = base.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _examples()), encoding="utf-8")
    flat = default_run_config() | {
        "model.name": str(base),
        "data.source": str(rows),
        "data.test-source": str(rows),
        "data.partition": "iid",
        "data.max-length": 24,
        "num-server-rounds": 1,
        "train.num-train-epochs": 1.0,
        "train.learning-rate": 1e-2,
        "output-dir": str(base.parent / "results"),
    }
    run = run_in_process(flat | dict(overrides), 2)
    if failures := read_metrics(run)[-1]["failures"]:
        raise RuntimeError(failures[0]["reason"])
    return run


def _examples() -> list[dict[str, str]]:
    """Return texts longer than the indexer of a small model sees, of two kinds."""
    kinds = {"yes": "a b c d e", "no": "f g h i j"}
    return [
        {
            "text": f"{words} {'k ' * (i % 4)}{words} {words}",
            "label": label,
            "instruction": f"{words} {words}",
            "response": words,
        }
        for i in range(8)
        for label, words in kinds.items()
    ]


@torch.no_grad()
def _difference(run: Path, kind: type[PreTrainedModel]) -> float:
    """Compare the export in plain transformers with the model of the run's last checkpoint."""
    checkpoint = find_checkpoint(run)
    config = parse_run_config(checkpoint.identity.config)
    setup = load_setup(config, checkpoint.identity.label_names)
    write_state(setup.model, setup.layers, checkpoint.snapshot.state)
    plain: Any = kind.from_pretrained(run / "model", dtype=torch.float32)
    here, there = (model.eval()(**_tokens(plain))[0] for model in (setup.model, plain))
    difference = float((here - there).abs().max() / there.abs().max())
    if not difference <= CLOSE:
        raise RuntimeError(f"the export's logits differ by {difference:.1%}")
    return difference


def _tokens(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    inputs = token_batch(model)
    size = len(word_tokenizer())
    return {k: v if "mask" in k else v % (size - 5) + 5 for k, v in inputs.items()}


def _short(error: Exception) -> str:
    """Return the reason without the model's path, the mode, what was looked for and the way out."""
    text = re.sub(r'^model\.name = "[^"]*": ', "", " ".join(str(error).split()))
    text = text.partition("tried on a small model of its make, ")[2] or text
    text = re.sub(r": looked for .*?[;,] found", "; found", text)
    text = re.split(r"[;,] choose", text)[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _row(name: str, answer: Mapping[str, Any]) -> tuple[str, ...]:
    modes: Mapping[str, Any] = answer.get("modes", {})
    why = answer.get("refused") or answer.get("crash") or _reasons(modes)
    differences = [value for value in modes.values() if not isinstance(value, str)]
    worst = f"{max(differences):.0e}" if differences else _NONE
    return (name, *(_cell(answer, modes, mode) for mode in MODES), worst, why)


def _cell(answer: Mapping[str, Any], modes: Mapping[str, Any], mode: str) -> str:
    if mode not in modes:
        return _NONE if modes else _NO
    return _NO if isinstance(modes[mode], str) else _YES


def _reasons(modes: Mapping[str, Any]) -> str:
    """Return every reason once, with the modes that it is about."""
    by_reason: dict[str, list[str]] = {}
    for mode, value in modes.items():
        if isinstance(value, str):
            by_reason.setdefault(value.removeprefix("refused: "), []).append(mode)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def _summary(answers: Mapping[str, Mapping[str, Any]]) -> str:
    every = [name for name, a in answers.items() if a.get("modes") and not _reasons(a["modes"])]
    some = [name for name, a in answers.items() if a.get("modes") and _reasons(a["modes"])]
    none = len(answers) - len(every) - len(some)
    return (
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(answers)} "
        f"families, {len(every)} in every mode, {len(some)} in some, {none} in none"
    )


if __name__ == "__main__":
    main()
