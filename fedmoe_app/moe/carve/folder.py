"""Carve a dense model into a new folder, check it with plain transformers, say how it was made."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import follow_umask
from fedmoe_app.moe.carve.base import Base
from fedmoe_app.moe.carve.convert import LayerReport, carve, enough_to_refit
from fedmoe_app.moe.carve.plan import Plan, Sizes, check_family, sizes_of
from fedmoe_app.moe.carve.texts import EMBEDDED, batches_of, perplexity, read_texts, tokens_of
from fedmoe_app.moe.checkpoint import CARD_FILE
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint

NOTE = "carve.json"
DTYPES = ("auto", "float32", "bfloat16", "float16")
GOOD_TOKENS = 20_000  # with fewer the refit learns some of the calibration texts by heart


@dataclass(frozen=True)
class Calibration:
    """The texts, of which the last part is held out for perplexity.

    Attributes:
        texts: a data file, or ``embedded``: docstrings.
        text_field: its column, or several.
        tokens: of calibration.
        max_length: tokens that a text is cut to.
    """

    texts: str = EMBEDDED
    text_field: str = "text"
    tokens: int = GOOD_TOKENS
    max_length: int = 64


@dataclass(frozen=True)
class Made:
    """What came of it.

    Attributes:
        folder: the new folder.
        before, after: perplexity on held-out texts of the dense model, and of the MoE model as
            plain transformers loads it from the folder.
        parameters: of the MoE model.
        fingerprint: of the folder; machines where it is equal have the same model.
        reports: of the layers of ``split``.
    """

    folder: Path
    before: float
    after: float
    parameters: int
    fingerprint: str
    reports: tuple[LayerReport, ...]


def carve_folder(
    base: Base,
    plan: Plan,
    calibration: Calibration,
    output: Path,
    dtype: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Write an MoE model of a dense one to a new folder, which appears complete or not at all.

    Beside model and tokenizer it holds :data:`NOTE`: base, method, sizes, calibration, perplexity,
    error and load of each layer.

    Args:
        base: the dense model.
        plan, calibration: what to make of it, and on which texts.
        output: the new folder.
        dtype: of the saved weights; ``auto``: that of the base, float32 for GGUF.
        say: called with a line as soon as there is something to tell.

    Raises:
        ConfigError, DataError: base, plan, texts or folder cannot be used; nothing is written.
    """
    if output.exists():
        raise ConfigError(f"--output {output}: is there already; choose another folder")
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: unknown; choose one of {', '.join(DTYPES)}")
    config = base.config()
    check_family(base.title, config)
    sizes = sizes_of(plan, config)
    tokenizer = base.tokenizer()
    calibration_texts, held_out = read_texts(calibration.texts, calibration.text_field, plan.seed)
    length = calibration.max_length
    fit = batches_of(tokenizer, calibration_texts, length, calibration.tokens)
    held = batches_of(tokenizer, held_out, length)
    for line in _warnings(plan, sizes, tokens_of(fit)):
        say(f"warning: {line}")
    dense = base.model()
    before = perplexity(dense, held)
    say(f"perplexity of {base.title} on held-out text: {before:.1f}")
    carved = carve(dense, plan, fit, done=lambda report: say(line_of(report)))
    del dense
    note: dict[str, Any] = {"base": about(base), "plan": asdict(plan) | {"shared": sizes.shared}}
    note["calibration"] = asdict(calibration) | {
        "texts": Path(calibration.texts).name,
        "tokens": tokens_of(fit),
    }
    note["layers"] = [asdict(report) for report in carved.reports]
    draft = new_draft(output)
    try:
        save(carved.model, tokenizer, draft, _saved_dtype(dtype, base, config))
        reports, size = carved.reports, carved.model.num_parameters()
        del carved  # a large model is in memory once
        after = perplexity(load_checked(draft), held)
        note["perplexity"] = {"before": before, "after": after}
        print_of_it = write_note(draft, note)
        follow_umask(draft)  # mkdtemp and safetensors make theirs private
        os.rename(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Made(output, before, after, size, print_of_it, reports)


def line_of(report: LayerReport) -> str:
    """Say in a line how well a layer does."""
    load = f"{min(report.load):.2f} to {max(report.load):.2f}"
    return f"layer {report.index}: relative error {report.error:.3f}, load {load} of an equal share"


def about(base: Base) -> dict[str, str]:
    """Say which model a folder was made of; empty where it is not known."""
    return {"name": base.title, "fingerprint": base.fingerprint(), "licence": base.licence()}


def new_draft(output: Path) -> Path:
    """Return an empty private folder beside ``output``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> None:
    """Write model and tokenizer as transformers does; weights are rounded to ``dtype``."""
    model.to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_note(folder: Path, note: Mapping[str, Any]) -> str:
    """Write :data:`NOTE` with the fingerprint of the folder, and return that; and a model card.

    From the card the models that runs make of the folder take its licence.
    """
    fingerprint = checkpoint_fingerprint(str(folder))
    text = json.dumps({"made by": "fedmoe carve", "fingerprint": fingerprint, **note}, indent=1)
    (folder / NOTE).write_text(f"{text}\n", encoding="utf-8")
    base = note["base"]
    licence = {"license": base["licence"].lower()} if base["licence"] else {}
    data = ModelCardData(library_name="transformers", tags=["mixture-of-experts"], **licence)
    body = f"# {base['name']}, carved into experts\n\nMade by fedmoe carve; how: {NOTE}."
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / CARD_FILE)
    return fingerprint


def load_checked(folder: Path) -> PreTrainedModel:
    """Load a folder with plain transformers.

    Raises:
        RuntimeError: a tensor is missing, left over or of another shape.
    """
    read: Any = AutoModelForCausalLM.from_pretrained
    model, info = read(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {key: sorted(map(str, names)) for key, names in info.items() if names}
    if wrong:
        raise RuntimeError(f"transformers does not load what was carved: {wrong}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _saved_dtype(dtype: str, base: Base, config: PreTrainedConfig) -> torch.dtype:
    if dtype == "auto":
        saved = None if base.gguf else config.dtype
        return saved if isinstance(saved, torch.dtype) else torch.float32
    found: torch.dtype = getattr(torch, dtype)
    return found


def _warnings(plan: Plan, sizes: Sizes, tokens: int) -> Iterator[str]:
    """Yield what a user should know before anything is computed."""
    if plan.method == "copy":
        return
    if not sizes.shared:
        yield (
            "without a shared expert a split model is far from the dense one (perplexity times 2.4 "
            "to 20 in our measurements); method copy keeps its outputs"
        )
    neurons = sizes.shared + sizes.width * plan.experts
    if plan.refit and not enough_to_refit(tokens, neurons):
        yield (
            f"{tokens} calibration tokens are too few to refit {neurons} neurons, so nothing is "
            f"refitted; give --tokens {GOOD_TOKENS} and texts that have them"
        )
    elif plan.refit and tokens < GOOD_TOKENS:
        yield (
            f"{tokens} calibration tokens are few for a refit: {GOOD_TOKENS} or more do better on "
            "other text (or a larger --ridge, or --no-refit)"
        )
