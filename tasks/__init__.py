"""The behaviours: one small file each, plain Python, importing nothing but `tasks.base`.

A file `tasks/NAME.py` that defines `TASK` is the task NAME: nothing is registered by hand.
"""

from tasks.base import Pair, Task, find_task, task_names

__all__ = ["Pair", "Task", "find_task", "task_names"]
