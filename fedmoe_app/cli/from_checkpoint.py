"""The model of a run that was stopped, from its newest checkpoint that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.lora import merge_adapters
from fedmoe_app.results.folder import ResultsError
from fedmoe_app.server.checkpoint import Checkpoint
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
    write_state(setup.model, setup.layers, checkpoint.snapshot.state)
    if kind == "peft":
        base = "" if config.model.name in PRESETS else config.model.name
        export_adapter(setup.model, setup.layers, folder, base)
    else:
        merge_adapters(setup.model, setup.layers)
        setup.model.save_pretrained(folder)
        setup.tokenizer.save_pretrained(folder)


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
