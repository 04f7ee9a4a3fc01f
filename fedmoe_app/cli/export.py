"""``fedmoe export RUN``: the trained model in a folder of its own, for other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import new_folder, write_atomic
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.served import for_llama_cpp, for_vllm
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.results.folder import CHECKPOINTS, ResultsError, list_checkpoints
from fedmoe_app.results.model_card import architecture_of, write_model_card
from fedmoe_app.server.checkpoint import Checkpoint, best_state
from fedmoe_app.server.resume import find_checkpoint
from fedmoe_app.tasks.setup import Setup, load_setup

Format = Literal["hf", "peft", "vllm", "llama.cpp"]
# Where a run that came to its end has what a format is made of.
_FOLDERS: dict[Format, str] = {
    "hf": "model",
    "peft": "adapter",
    "vllm": "model",
    "llama.cpp": "model",
}
# What another program wants changed in the model.
_CHANGES: dict[Format, Callable[[PreTrainedModel], PreTrainedModel]] = {
    "vllm": for_vllm,
    "llama.cpp": for_llama_cpp,
}


def write_model(run: Path, kind: Format, folder: Path) -> None:
    """Write the model of a checkpoint as the end of a run would have.

    Args:
        run: result folder of a run with checkpoints.
        kind: see :func:`fedmoe_app.cli.export.export`.
        folder: the new folder.

    Raises:
        ResultsError: no checkpoint can be read, the base model is another one than the run's, or
            the run trains no adapters.
        UnsupportedModelError: the program does not compute such a model.
    """
    checkpoint = _newest(run)
    config = parse_run_config(checkpoint.identity.config)
    if kind == "peft" and config.model.train != "expert-lora":
        raise ResultsError(
            f'--format peft: this run has model.train = "{config.model.train}" and no adapter, '
            'only "expert-lora" gives one; --format hf gives the whole model'
        )
    setup = load_setup(config, checkpoint.identity.label_names, on=config.server_device)
    _check_base(setup, checkpoint)
    best = checkpoint.snapshot.best
    state = checkpoint.snapshot.result if best is None else best_state(run, best)
    write_state(setup.model, setup.layers, state)
    if kind == "peft":
        base = "" if config.model.name in PRESETS else located(config.model.name)
        export_adapter(setup.model, setup.layers, folder, base)
    else:
        merge_adapters(setup.model, setup.layers)
        _write(run, setup.model, setup.tokenizer, folder, kind)


def _write(
    run: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    kind: Format,
) -> None:
    model = _CHANGES[kind](model) if kind in _CHANGES else model
    with new_folder(folder) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        write_model_card(run, draft)
        if kind == "llama.cpp":
            _for_older_transformers(draft / "tokenizer_config.json")


def _for_older_transformers(file: Path) -> None:
    """Name a tokenizer's class as transformers 4 does, too, which llama.cpp's converter pins."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_atomic(file, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _newest(run: Path) -> Checkpoint:
    try:
        return find_checkpoint(run)
    except ConfigError as error:
        reason = str(error).partition(": ")[2]  # without the key of the run config
        raise ResultsError(f"{run}: no model there, and {reason}") from None


def _check_base(setup: Setup, checkpoint: Checkpoint) -> None:
    expected = checkpoint.identity.base_fingerprint
    if setup.base_fingerprint != expected:
        raise ResultsError(
            f"{checkpoint.path}: trained on a base model of fingerprint {expected}, the one here "
            f"has {setup.base_fingerprint}; export it where the same files (or revision) are"
        )


def read_format(text: str) -> Format:
    """Check the word of ``--format``.

    Raises:
        ConfigError: naming the choices.
    """
    for kind in _FOLDERS:
        if text == kind:
            return kind
    raise ConfigError(f"--format {text}: unknown; choose one of {', '.join(_FOLDERS)}")


def export(run: Path, kind: Format, target: Path) -> Path:
    """Write a run's model to a new folder, which appears complete or not at all.

    A run that was stopped has no model yet; it is made from the newest checkpoint that can be read.

    Args:
        run: result folder of a run.
        kind: "hf", the whole model with adapters merged into it, as ``from_pretrained`` of
            transformers takes it; "peft", the adapter alone; "vllm" and "llama.cpp", the whole
            model as :mod:`fedmoe_app.moe.served` makes it for them.
        target: the new folder; it must not exist.

    Raises:
        ResultsError: the run has no such model, or ``target`` is there already.
        UnsupportedModelError: the program does not compute such a model.
    """
    source = source_of(run, kind)
    if target.exists():
        raise ResultsError(f"--output {target}: is there already; choose another folder")
    if source.name == CHECKPOINTS:
        write_model(run, kind, target)
    elif kind in _CHANGES:
        kind_of_model = getattr(transformers, architecture_of(source))
        model = kind_of_model.from_pretrained(source, dtype="auto").eval()
        _write(run, model, AutoTokenizer.from_pretrained(source), target, kind)
    else:
        with new_folder(target) as draft:
            shutil.copytree(source, draft, dirs_exist_ok=True)
    return target


def source_of(run: Path, kind: Format) -> Path:
    """Return the folder that a run's model is taken from: ``model``, ``adapter``, ``checkpoints``.

    Raises:
        ResultsError: there is none.
    """
    if not run.is_dir():
        raise ResultsError(f"{run}: no such folder; name the result folder of a run")
    source = run / _FOLDERS[kind]
    if (source / _config_file(kind)).is_file():
        return source
    if (run / "model").is_dir() and kind == "peft":
        raise ResultsError(
            f'{source}: no adapter there; a run has one with model.train = "expert-lora" where '
            "PEFT can represent it; --format hf gives the whole model"
        )
    if list_checkpoints(run):
        return run / CHECKPOINTS
    raise ResultsError(
        f"{source}: no model there and no checkpoint beside it; name the result folder of a run "
        "of which at least one round is done"
    )


def _config_file(kind: Format) -> str:
    return "adapter_config.json" if kind == "peft" else "config.json"
