"""The pictures of a scheme's diagnostics, by file name.

Each function takes the metrics lines of a run and returns None when they lack its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.conflict import draw_conflict
from fedmoe_app.report.diagnostics.consistency import draw_consistency
from fedmoe_app.report.diagnostics.selection import draw_selection
from fedmoe_app.report.diagnostics.similarity import draw_similarity
from fedmoe_app.report.diagnostics.weights import draw_weights
from fedmoe_app.results.values import Line

DIAGNOSTIC_DRAWINGS: Mapping[str, Callable[[Sequence[Line]], Figure | None]] = MappingProxyType(
    {
        "conflict.png": draw_conflict,
        "consistency.png": draw_consistency,
        "similarity.png": draw_similarity,
        "selection.png": draw_selection,
        "weights.png": draw_weights,
    }
)
