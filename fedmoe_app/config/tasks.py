"""The tasks that ``data.task`` can name, and what config, data and model need to know of each.

What a task does stands in the file of its name in ``fedmoe_app/tasks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_COLUMN_KEYS = {
    "class": ("text-field", "label-field"),
    "options": ("question-field", "options-field", "answer-field"),
    "language": (
        *("messages-field", "prompt-field", "completion-field"),
        *("instruction-field", "context-field", "response-field"),
    ),
}


@dataclass(frozen=True)
class TaskKind:
    """What is known of a task before anything is loaded.

    Attributes:
        metrics: what it can be scored by; the first is what ``data.metric = "auto"`` means.
        rows: what a row of its data holds: a text and its "class", a question with "options", or
            "language": a text, a prompt with its answer, or a conversation.
    """

    metrics: tuple[str, ...]
    rows: Literal["class", "options", "language"]

    @property
    def column_keys(self) -> tuple[str, ...]:
        """Keys of ``data`` that name columns of such a row."""
        return _COLUMN_KEYS[self.rows]

    @property
    def classifies(self) -> bool:
        """Whether rows have a class, and the run has names of classes."""
        return self.rows == "class"


TASKS = {
    "classification": TaskKind(("accuracy",), rows="class"),
    "causal-lm": TaskKind(("token-accuracy", "exact-match"), rows="language"),
    "multiple-choice": TaskKind(("accuracy", "acc-norm"), rows="options"),
}
METRICS = tuple(dict.fromkeys(metric for kind in TASKS.values() for metric in kind.metrics))
