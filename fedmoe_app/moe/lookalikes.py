"""What is said of a model whose experts are not found: what was looked for, and what is there."""

from __future__ import annotations

import re

from torch import nn

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
