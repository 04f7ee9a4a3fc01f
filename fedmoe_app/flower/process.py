"""What Flower's runtimes set for a process before an app runs in it."""

from __future__ import annotations

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["RUN_ID", "Run", "empty_run", "task_identity"]

RUN_ID = 1


def empty_run() -> Run:
    """Return the facts of a run that no SuperLink knows."""
    return Run.create_empty(RUN_ID)


class task_identity:
    """Give messages the identity that Flower's runtimes set for the process, then restore it."""

    def __enter__(self) -> None:
        names = ("_task_id", "_run_id", "_node_id")
        self._before = {name: getattr(TaskIdentity, name) for name in names}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1

    def __exit__(self, *exc_info: object) -> None:
        for name, value in self._before.items():
            setattr(TaskIdentity, name, value)
