"""``fedmoe export RUN``: the trained model in a folder of its own, for transformers or PEFT."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.paths import follow_umask
from fedmoe_app.results.folder import CHECKPOINTS, ResultsError, list_checkpoints

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
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if source.name == CHECKPOINTS:
            from fedmoe_app.cli.from_checkpoint import write_model

            write_model(run, kind, draft / "model")
        else:
            shutil.copytree(source, draft / "model")
        follow_umask(draft / "model")
        (draft / "model").rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
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
