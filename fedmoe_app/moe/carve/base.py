"""Find and read the dense model: a folder, a GGUF file, or a hub name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.checkpoint import check_checkpoint, licence_of
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_GGUF = ".gguf"
INSTALL_GGUF = "pip install gguf"


@dataclass(frozen=True)
class Base:
    """Where a dense model is.

    Attributes:
        name: folder, or name at the hub.
        gguf: file in it; "" for a model in transformers' own form.
    """

    name: str
    gguf: str = ""

    @property
    def title(self) -> str:
        """The last part of the path, or the hub name."""
        place = Path(self.name)
        return self.gguf or (place.resolve().name if place.is_dir() else self.name)

    @property
    def _where(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf} if self.gguf else {}

    def config(self) -> PreTrainedConfig:
        """Read the config.

        Raises:
            ConfigError: there is none that transformers reads, or the weights are quantised in
                another form than GGUF.
        """
        try:
            config = AutoConfig.from_pretrained(self.name, **self._where)
        except (ImportError, OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.title}: {self._reason(error)}") from error
        saved = getattr(config, "quantization_config", None)
        if saved and not self.gguf:
            method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
            raise ConfigError(
                f"{self.title}: the checkpoint is quantised ({method}); choose one in 16 or 32 "
                "bits, or a GGUF file"
            )
        if not self.gguf:
            check_checkpoint(self.name)
        return config

    def _reason(self, error: Exception) -> str:
        if self.gguf and isinstance(error, ImportError):
            return f"a GGUF file needs the package gguf: {INSTALL_GGUF}"
        first = str(error).strip().partition("\n")[0]
        hub = "" if Path(self.name).is_dir() else "; --online allows downloads from the hub"
        return f"holds no model that transformers reads ({first}){hub}"

    def model(self) -> PreTrainedModel:
        """Read the weights as float32."""
        read = AutoModelForCausalLM.from_pretrained
        try:
            model: PreTrainedModel = read(self.name, dtype=torch.float32, **self._where)
        except (ImportError, OSError) as error:
            raise ConfigError(f"{self.title}: {self._reason(error)}") from error
        return model.eval()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer; one without a padding token pads with its end of sequence, right.

        Raises:
            ConfigError: there is none.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, **self._where)
        except (ImportError, OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.title}: no tokenizer: {self._reason(error)}") from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer

    def fingerprint(self) -> str:
        """Return SHA-256 of a GGUF file, else the fingerprint that runs compare."""
        if not self.gguf:
            return checkpoint_fingerprint(self.name)
        path = Path(self.name) / self.gguf
        return file_hash(path) if path.is_file() else ""

    def licence(self) -> str:
        """Return what the model card says, "" where there is none or it says nothing."""
        return licence_of(self.name) or ""


def file_hash(path: Path) -> str:
    """Return SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_base(name: str, gguf_file: str = "") -> Base:
    """Find out what a name means.

    Args:
        name: a folder with a model of transformers or GGUF files, a GGUF file, or a hub name.
        gguf_file: which file of the folder or hub model.

    Raises:
        ConfigError: nothing is there, or several files are; it names the choices.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != _GGUF:
            raise ConfigError(f"{name}: is a file; name a model's folder, or a file in {_GGUF}")
        return Base(str(path.parent.absolute()), path.name)
    if not path.is_dir():
        if not _HUB_NAME.fullmatch(name):
            raise ConfigError(f"{name}: no such folder or file, and not a hub name owner/model")
        return Base(name, gguf_file)
    folder = str(path.absolute())
    files = sorted(file.name for file in path.glob(f"*{_GGUF}"))
    if gguf_file:
        if gguf_file not in files:
            there = ", ".join(files) or "none"
            raise ConfigError(f"--gguf-file {gguf_file}: not in {name}; GGUF files there: {there}")
        return Base(folder, gguf_file)
    if (path / "config.json").is_file():
        return Base(folder)
    if len(files) != 1:
        found = f"several GGUF files; choose one with --gguf-file: {', '.join(files)}"
        raise ConfigError(f"{name}: {found if files else 'neither config.json nor a GGUF file'}")
    return Base(folder, files[0])
