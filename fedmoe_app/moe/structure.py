"""Recognise experts and routers by their shapes; no model names.

``E`` is the number of experts of a layer, ``K`` the number that a token uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class UnsupportedModelError(ValueError):
    """A model that has no Mixture-of-Experts layers, or whose layers cannot be handled."""


def stacked_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters that stack one value an expert, if it is fused."""
    size = getattr(module, "num_experts", None)
    if not isinstance(size, int) or size < 2:
        return {}
    own = {
        name: p
        for name, p in module.named_parameters(recurse=False)
        if p.dim() >= 2 and p.shape[0] == size
    }
    return own if any(p.dim() == 3 for p in own.values()) else {}


_ADAPTERS = "_fedmoe_adapters"  # attribute of an experts module


def set_adapters(module: nn.Module, adapters: Sequence[dict[str, nn.Parameter]]) -> None:
    """Note the LoRA parameters of each expert on its module, so that a copy of it has its own."""
    # Not through nn.Module's __setattr__: the model's state_dict stays as it is.
    module.__dict__[_ADAPTERS] = tuple(adapters)


def adapters_of(module: nn.Module) -> tuple[dict[str, nn.Parameter], ...]:
    """Return what :func:`set_adapters` noted; empty for a module without adapters."""
    return module.__dict__.get(_ADAPTERS, ())


_LOADED = "_fedmoe_loaded"  # attribute of an experts module


def set_loaded(module: nn.Module, experts: Iterable[int]) -> None:
    """Note that only these experts of a module are in memory."""
    module.__dict__[_LOADED] = frozenset(experts)


def loaded_of(module: nn.Module) -> frozenset[int] | None:
    """Return what :func:`set_loaded` noted; None for a module with all its experts."""
    return module.__dict__.get(_LOADED)


def is_fused(module: nn.Module) -> bool:
    """Tell whether a module stacks experts in parameters of its own."""
    return bool(stacked_parameters(module))


def check_interface(block: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError unless stacked experts run by transformers' own interface.

    It is the seam by which each expert runs on parameters of its own
    (:mod:`fedmoe_app.moe.training.slots`); a family without it cannot be trained in any mode.
    """
    if hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
        return
    kind = type(module).__name__
    shapes = ", ".join(f"{name} {list(p.shape)}" for name, p in stacked_parameters(module).items())
    raise UnsupportedModelError(
        f"{block}: {kind} does not use transformers' experts interface, so its experts cannot be "
        "trained one by one: looked for a class under @use_experts_implementation, found "
        f"{kind} ({shapes}) with a forward of its own; choose another model"
    )


def is_listed(module: nn.Module, name: str) -> bool:
    """Tell whether a list or dict of modules holds experts, not a stack of whole layers."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    children = listed_experts(module)
    named = "expert" in name.rpartition(".")[2]
    if len(children) < 2 or not (named or getattr(module, "num_experts", 0) == len(children)):
        return False
    # Experts that are not loaded are not quantised with the others.
    loaded = [children[e] for e in sorted(loaded_of(module) or range(len(children)))]
    shapes = [[(n, p.shape) for n, p in child.named_parameters()] for child in loaded]
    return bool(shapes[0]) and all(shape == shapes[0] for shape in shapes)


def listed_experts(module: nn.Module) -> list[nn.Module]:
    """Return the experts of a list or dict in order; a dropout kept beside them is no expert."""
    return [c for c in module.children() if next(c.parameters(), None) is not None]


def count_experts(experts: nn.Module) -> int:
    """Return E of an experts module."""
    stacked = stacked_parameters(experts)
    return next(iter(stacked.values())).shape[0] if stacked else len(listed_experts(experts))


def find_router(modules: Mapping[str, nn.Module], experts: str) -> tuple[str, str]:
    """Return the paths of the MoE block and of its router, climbing up from the experts.

    Raises:
        UnsupportedModelError: no sibling on the way up looks like a router, or several do.
    """
    size = count_experts(modules[experts])
    block = experts
    while block:
        block = block.rpartition(".")[0]
        routers = [
            f"{block}.{name}" if block else name
            for name, child in modules[block].named_children()
            if _is_router(child, size)
        ]
        if len(routers) == 1:
            return block, routers[0]
        if routers:
            raise UnsupportedModelError(
                f"{experts}: several modules look like its router: {', '.join(routers)}"
            )
    raise UnsupportedModelError(f"{experts}: no router with one [{size}, hidden] matrix beside it")


def _is_router(module: nn.Module, num_experts: int) -> bool:
    parameters = list(module.parameters())
    # A [1, E] bias beside the matrix (Ernie 4.5) is no second matrix.
    matrices = [p for p in parameters if p.dim() == 2 and min(p.shape) > 1]
    largest = max((p.dim() for p in parameters), default=0)
    return largest == 2 and len(matrices) == 1 and matrices[0].shape[0] == num_experts


def find_top_k(model: PreTrainedModel, router: nn.Module, block: nn.Module) -> int:
    """Return K; a family that states it nowhere (Switch) routes each token to one expert."""
    text = model.config.get_text_config()
    sources: list[tuple[Any, str]] = [(router, "top_k"), (block, "top_k")]
    sources += [(text, "num_experts_per_tok"), (text, "top_k_experts")]
    found = (getattr(owner, name, None) for owner, name in sources)
    return next((k for k in found if isinstance(k, int)), 1)


def find_logits_index(model: PreTrainedModel, router: nn.Module) -> int | None:
    """Return where transformers says that this router's output tuple holds the logits."""
    for module in model.modules():
        recorded: Any = getattr(module, "_can_record_outputs", None) or {}
        specs = recorded.get("router_logits", [])
        for spec in specs if isinstance(specs, list) else [specs]:
            target = getattr(spec, "target_class", None)
            if target is not None and isinstance(router, target):
                return int(spec.index)
    return None


LOOKED_FOR = (
    "looked for experts that are stacked in parameters [E, ., .] of a module with num_experts = E, "
    "or listed as at least two equal modules, and beside them for a router with one matrix "
    "[E, hidden]"
)
_SPEAKS_OF_EXPERTS = re.compile(r"expert|router|moe(layer|block|mlp|gate)?$|ffn$", re.IGNORECASE)
_MOST_MODULES = 3
_MOST_SHAPES = 6  # of each


def found_instead(model: nn.Module) -> str:
    """Name the modules whose class speaks of experts, with their parameters.

    Of each class the first, and no module that only holds others of them.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if name and kind not in found and _speaks(module):
            inner = any(_speaks(m) for m in module.modules() if m is not module)
            found[kind] = "" if inner else f"{name} ({kind}{_shapes(module)})"
    named = [text for text in found.values() if text]
    if not named:
        return "found no module whose class speaks of experts or of a router"
    return f"found {', '.join(named[:_MOST_MODULES])}"


def _speaks(module: nn.Module) -> bool:
    return bool(_SPEAKS_OF_EXPERTS.search(type(module).__name__))


def _shapes(module: nn.Module) -> str:
    shapes = [f"{name} {list(p.shape)}" for name, p in module.named_parameters()]
    more = f", and {len(shapes) - _MOST_SHAPES} more" if len(shapes) > _MOST_SHAPES else ""
    return f": {', '.join(shapes[:_MOST_SHAPES])}{more}" if shapes else ""
