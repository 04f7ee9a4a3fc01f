"""Tasks by their name in the run config: each is the file of that name beside this one."""

from __future__ import annotations

from importlib import import_module

from fedmoe_app.tasks.base import Task, TaskSetting


def make_task(setting: TaskSetting) -> Task:
    """Return a run's task; its file's function ``make`` decides which class it is."""
    module = import_module(f"fedmoe_app.tasks.{setting.data.task.replace('-', '_')}")
    task: Task = module.make(setting)
    return task
