"""``fedmoe export RUN``: the trained model in a folder of its own, for transformers or PEFT."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import new_folder
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.results.folder import CHECKPOINTS, ResultsError, list_checkpoints
from fedmoe_app.results.model_card import write_model_card
from fedmoe_app.server.checkpoint import Checkpoint, best_state
from fedmoe_app.server.resume import find_checkpoint
from fedmoe_app.tasks.setup import Setup, load_setup


def write_model(run: Path, kind: Literal["hf", "peft"], folder: Path) -> None:
    """Write the model of a checkpoint as the end of a run would have.

    Args:
        run: result folder of a run with checkpoints.
        kind: see :func:`fedmoe_app.cli.export.export`.
        folder: the new folder.

    Raises:
        ResultsError: no checkpoint can be read, the base model is another one than the run's, or
            the run trains no adapters.
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
        with new_folder(folder) as draft:
            setup.model.save_pretrained(draft)
            setup.tokenizer.save_pretrained(draft)
            write_model_card(run, draft)


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


Format = Literal["hf", "peft"]
_FOLDERS: dict[Format, str] = {"hf": "model", "peft": "adapter"}


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
            transformers takes it; "peft", the adapter alone.
        target: the new folder; it must not exist.

    Raises:
        ResultsError: the run has no such model, or ``target`` is there already.
    """
    source = source_of(run, kind)
    if target.exists():
        raise ResultsError(f"--output {target}: is there already; choose another folder")
    if source.name == CHECKPOINTS:
        write_model(run, kind, target)
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
    return "config.json" if kind == "hf" else "adapter_config.json"
