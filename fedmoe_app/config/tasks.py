"""The tasks that ``data.task`` can name, and what all else needs to know of each.

What a task does stands in the file of its name in ``fedmoe_app/tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        learnt: what the model learns, for the reference page.
        metrics: what it can be scored by, each with what it is where its name does not say so; the
            first is what ``data.metric = "auto"`` means.
        rows: what a row of its data holds: a text and its "class", a question with "options", or
            "language": a text, a prompt with its answer, or a conversation.
    """

    learnt: str
    metrics: Mapping[str, str]
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
    "classification": TaskKind("the class of a text", {"accuracy": ""}, rows="class"),
    "causal-lm": TaskKind(
        "a text, a prompt's answer or a conversation, token by token",
        {"token-accuracy": "", "exact-match": "the generated answer's last number is right"},
        rows="language",
    ),
    "multiple-choice": TaskKind(
        "which option answers a question: the one that is the most likely",
        {"accuracy": "", "acc-norm": "likelihoods are divided by the options' lengths"},
        rows="options",
    ),
}
METRICS = {metric: what for kind in TASKS.values() for metric, what in kind.metrics.items()}
