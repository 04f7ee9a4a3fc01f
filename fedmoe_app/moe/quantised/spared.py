"""Which linear maps a quantiser must leave as they are, because their family says or shows so.

Two signs, both of transformers' own code. A family lists what it keeps in 32 bits
(``_keep_in_fp32_modules`` and ``_keep_in_fp32_modules_strict``): such as the scores of a
sparse-attention indexer, which are no good in four bits. And a module that reads the weight of a
child (``self.dt_proj.weight @ x``, ``x.to(self.proj.weight.dtype)``) would read packed bytes.

Experts are no matter of these signs: they are run by this app
(:mod:`fedmoe_app.moe.quantised.packed`), and Switch's list, where transformers has one, names the
map ``wo`` of each.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer

# T5 casts to the type of its map ``wo``, which shows the computing type when it is packed
# (fedmoe_app/moe/quantised/quantisers.py): no reason to leave it.
_SHOWS_ITS_TYPE = "wo"


def spared_linears(model: PreTrainedModel, layers: Sequence[MoELayer]) -> list[str]:
    """Return the names of the linear maps outside the experts that must not be packed."""
    experts = {id(m) for layer in layers for m in layer.experts_module.modules()}
    found: list[str] = []
    for owner_name, owner in model.named_modules():
        for leaf, child in owner.named_children():
            if isinstance(child, nn.Linear) and id(child) not in experts:
                name = f"{owner_name}.{leaf}" if owner_name else leaf
                if _is_listed(model, name) or _is_read(owner, leaf):
                    found.append(name)
    return found


def _is_listed(model: PreTrainedModel, name: str) -> bool:
    """Tell whether the family's lists name a linear map, by transformers' rules for each list."""
    weight = f"{name}.weight"
    loose: Iterable[str] = model._keep_in_fp32_modules or ()
    strict: Iterable[str] = model._keep_in_fp32_modules_strict or ()
    return any(_names(pattern, name) or weight.endswith(pattern) for pattern in loose) or any(
        re.search(pattern.replace("*", ".*"), weight) for pattern in strict
    )


def _names(pattern: str, name: str) -> bool:
    """A pattern names a module from the start up to the end of a part, or from the end."""
    return name.endswith(pattern) or bool(re.match(rf"(?:{pattern})(?=\.|$)", name))


def _is_read(owner: nn.Module, leaf: str) -> bool:
    if leaf == _SHOWS_ITS_TYPE:
        return False
    source = _source(cast(Any, type(owner)))
    return bool(re.search(rf"\bself\.{re.escape(leaf)}\.weight\b(?!\.device)", source))


@cache
def _source(kind: Any) -> str:
    """Return the source of a module's class and of those of transformers that it is made from."""
    parts = []
    for base in kind.__mro__:
        if base.__module__.startswith("transformers.models."):
            try:
                parts.append(inspect.getsource(base))
            except (OSError, TypeError):  # not shipped as source
                continue
    return "\n".join(parts)
