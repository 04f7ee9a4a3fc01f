"""Expert budgets: how many experts a layer a client can train.

A budget is a number of experts (an integer, 1 or more) or a share of a layer's experts (a number
with a decimal point, above 0 and at most 1): ``2`` is two experts, ``0.5`` half of them, ``1.0``
all. One below the model's top-k is allowed, because it bounds training, not the forward pass; a
number above E means all experts.
"""

from __future__ import annotations

from typing import Any

Budget = int | float


def check_budget(value: Any) -> Budget:
    """Return a valid budget.

    Raises:
        ValueError: naming the two allowed forms.
    """
    is_number = type(value) is int and value >= 1
    is_share = type(value) is float and 0 < value <= 1
    if not (is_number or is_share):
        raise ValueError(
            f"{value!r} is no expert budget: give a number of experts a layer (1, 2, ...) or a "
            "share of them, above 0 and at most 1.0"
        )
    return value


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read a comma-separated list such as ``2, 4, 0.5``.

    Raises:
        ValueError: if the list is empty or an entry is no budget.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise ValueError("name at least one expert budget, such as 4 or 0.5")
    return tuple(check_budget(_number(entry)) for entry in entries)


def experts_in(budget: Budget, num_experts: int) -> int:
    """Return the budget as a number of a layer's E experts, 1 to E; a share is rounded down."""
    if isinstance(budget, float):
        # A hair more than the product: 0.7 of 10 experts is 7, whatever binary fractions say.
        return max(1, int(budget * num_experts + 1e-9))
    return min(budget, num_experts)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
