"""What a run computed, as hashes by kind and by part, and as figures for other machines.

Nothing of time or place goes into a hash: no seconds, dates and process ids, neither the random key
of the run nor versions and paths, no pictures and pages.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

PART_DIGITS = 6  # hexadecimal: parts only say where a difference is


@dataclass(frozen=True)
class Kind:
    """One kind of result: metrics, state, model, ...

    Attributes:
        sha256: of all parts with their names.
        parts: name of a part (``round 2: bytes_up``, a tensor's name) -> its short hash; sorted.
    """

    sha256: str
    parts: Mapping[str, str]


def fingerprint(results: Path, settings: Iterable[str] = ()) -> dict[str, Kind]:
    """Hash what a run left behind, by kind; kinds of which there is nothing are left out.

    Args:
        results: the result folder. What clients kept lies in ``home`` beside it.
        settings: the keys of the run config that are compared. All would be too many: a new key
            changes no run.
    """
    newest = max((results / "checkpoints").iterdir())
    kinds = {
        "metrics": _metrics(results / "metrics.jsonl"),
        "samples": _lines(results / "samples.jsonl"),
        "state": _tensors(newest / "state.safetensors"),
        "broadcast": _tensors(newest / "broadcast.safetensors"),
        "checkpoint": _header(newest / "checkpoint.json"),
        "kept": _kept(results.parent / "home"),
        "model": _tensors(results / "model" / "model.safetensors"),
        "model config": _model_config(results / "model" / "config.json"),
        "adapter": _tensors(results / "adapter" / "adapter_model.safetensors"),
        "config": _settings(results / "config.toml", settings),
    }
    return {name: _kind(parts) for name, parts in kinds.items() if parts}


def figures(results: Path) -> list[dict[str, Any]]:
    """Return, by round, what is nearly the same on every machine, and what is exactly so."""
    names = ("round", "status", "loss", "accuracy", "train_loss", "num_clients")
    return [
        {name: line[name] for name in (*names, "bytes_up", "bytes_down")}
        | {"failures": [failure["who"] for failure in line["failures"]]}
        for line in _read_lines(results / "metrics.jsonl")
    ]


def files(results: Path) -> list[str]:
    """Return the names of the files that are there for the user, sorted."""
    found = (path for path in results.rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(path.relative_to(results).as_posix() for path in found)


def machine() -> str:
    """Name what last bits depend on: the machine's kind, libraries, and how it really rounds.

    Libraries choose their kernels by the processor's maker, too, which no version tells. So a few
    operations are carried out and hashed.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    libraries = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{platform.machine()} {capability}, {libraries}, arithmetic {_arithmetic()}"


@torch.no_grad()
def _arithmetic() -> str:
    """Hash the results of what a tiny model is made of, on one thread, as the runs are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random = torch.randn(2048, generator=torch.Generator().manual_seed(0))
    values = (torch.arange(4096) * 2654435761 % 10007).float() / 10007 - 0.5
    left, right = values.view(64, 64), values.flip(0).view(64, 64)
    products = [left[:n, :k] @ right[:k, :m] for n, k, m in _SIZES]
    products.append(torch.bmm(values.view(4, 32, 32), values.flip(0).view(4, 32, 32)))
    unary = (torch.exp, torch.sigmoid, torch.nn.functional.silu, torch.erf, torch.log1p, torch.cos)
    others = [function(values) for function in unary]
    others += [left.softmax(-1), left.square().mean(-1).rsqrt(), values.norm(), values.sum()]
    digest = hashlib.sha256()
    for tensor in (random, *products, *others):
        digest.update(_raw(tensor))
    torch.set_num_threads(threads)
    return digest.hexdigest()[:12]


_SIZES = ((1, 32, 4), (4, 32, 16), (7, 16, 32), (16, 48, 32), (64, 32, 61), (64, 64, 64))


# -- the kinds: part -> what it holds ----------------------------------------------------------


def _metrics(path: Path) -> dict[str, bytes]:
    """Every figure of every round, as exact as the file has it, but the seconds."""
    return {
        f"round {number:02d}: {key}": _text(value)
        for number, line in enumerate(_read_lines(path))
        for key, value in line.items()
        if key != "seconds"
    }


def _lines(path: Path) -> dict[str, bytes]:
    return {f"line {i:02d}": _text(line) for i, line in enumerate(_read_lines(path), start=1)}


def _tensors(path: Path) -> dict[str, bytes]:
    """Raw bytes of every tensor with its type and shape."""
    if not path.is_file():
        return {}
    return {
        name: f"{tensor.dtype} {list(tensor.shape)} ".encode() + _raw(tensor)
        for name, tensor in load_file(path).items()
    }


def _header(path: Path) -> dict[str, bytes]:
    """What is counted, what data and base the run is of, and the order in which sums are made."""
    header = json.loads(path.read_bytes())
    order = {name: file["order"] for name, file in header["files"].items()}
    identity = {key: value for key, value in header["identity"].items() if key != "config"}
    return {
        name: _text(value)
        for name, value in {**header["counters"], **identity, "order of tensors": order}.items()
    }


def _kept(home: Path) -> dict[str, bytes]:
    """Return what clients kept for later rounds, by client, round and tensor."""
    return {
        f"{path.parent.name}/{path.stem}/{name}": raw
        for path in home.glob("clients/*/*/*.safetensors")
        for name, raw in _tensors(path).items()
    }


def _model_config(path: Path) -> dict[str, bytes]:
    config = json.loads(path.read_bytes())
    places = ("transformers_version", "_name_or_path")
    return {key: _text(value) for key, value in config.items() if key not in places}


def _settings(path: Path, keys: Iterable[str]) -> dict[str, bytes]:
    config = tomllib.loads(path.read_text(encoding="utf-8"))
    found: dict[str, bytes] = {}
    for key in keys:
        table, _, name = key.rpartition(".")
        value = (config.get(table, {}) if table else config).get(name)
        found[key] = _text(value)
    return found


# -- helpers -----------------------------------------------------------------------------------


def _kind(parts: Mapping[str, bytes]) -> Kind:
    whole, short = hashlib.sha256(), {}
    for name in sorted(parts):
        digest = hashlib.sha256(name.encode() + b"\0" + parts[name])
        whole.update(digest.digest())
        short[name] = digest.hexdigest()[:PART_DIGITS]
    return Kind(whole.hexdigest(), short)


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
