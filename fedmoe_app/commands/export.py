"""``fedmoe export RUN``: the trained model in a folder of its own, for transformers or PEFT."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from fedmoe_app.config import ConfigError
from fedmoe_app.report.log import ResultsError

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
    """Copy a run's model to a new folder, which appears complete or not at all.

    Args:
        run: result folder of a run.
        kind: "hf", the whole model with adapters merged into it, as ``from_pretrained`` of
            transformers takes it; "peft", the adapter alone.
        target: the new folder; it must not exist.

    Raises:
        ResultsError: the run has no such model, or ``target`` is there already.
    """
    source = run / _FOLDERS[kind]
    if not (source / _config_file(kind)).is_file():
        raise ResultsError(_missing(run, kind))
    if target.exists():
        raise ResultsError(f"--output {target}: is there already; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shutil.copytree(source, draft, dirs_exist_ok=True)
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def _config_file(kind: Format) -> str:
    return "config.json" if kind == "hf" else "adapter_config.json"


def _missing(run: Path, kind: Format) -> str:
    folder = run / _FOLDERS[kind]
    if not run.is_dir():
        return f"{run}: no such folder; name the result folder of a run"
    if kind == "peft" and (run / "model").is_dir():
        return (
            f'{folder}: no adapter there; a run has one with model.train = "expert-lora" where '
            "PEFT can represent it; --format hf gives the whole model"
        )
    return f"{folder}: no model there; a run has one once a round of it succeeded"
