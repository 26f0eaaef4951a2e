"""The behaviours: one small file each, plain Python, importing nothing but `tasks.base`.

A file `tasks/NAME.py` that defines `TASK` is the task NAME: nothing is registered by hand. `tasks.files` reads tasks that users write as
JSONL, `tasks.installed` finds those that packages bring.
"""

from tasks.base import Pair, Task, task_names
from tasks.lookup import find_task

__all__ = ["Pair", "Task", "find_task", "task_names"]
