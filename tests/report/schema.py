"""Specs held against the schema of Vega-Lite, which draws a misspelled key without a word."""

from __future__ import annotations

from typing import Any

import altair


def check(spec: dict[str, Any]) -> None:
    """Fail where the spec has a key or a value that the schema does not know."""
    kinds = {"vconcat": altair.VConcatChart, "layer": altair.LayerChart}
    known = next((chart for kind, chart in kinds.items() if kind in spec), altair.Chart)
    known.from_dict(_with_few_rows(spec))


def _with_few_rows(value: Any) -> Any:
    """Rows of data may be anything, and each takes time to be looked at."""
    if isinstance(value, list):
        return [_with_few_rows(item) for item in value]
    if not isinstance(value, dict):
        return value
    few = ("values", "concat")  # the panels of one picture have one shape
    return {key: _with_few_rows(item[:2] if key in few and isinstance(item, list) else item)
            for key, item in value.items()}  # fmt: skip
