"""The tasks: one small file each, in plain Python, without imports of other packages of this project.

A file `tasks/NAME.py` with a `TASK` defines the task NAME; there is no registration. `tasks.files` reads tasks from users' JSONL files,
`tasks.installed` finds tasks of installed packages.
"""

from tasks.base import Pair, Task, task_names
from tasks.lookup import find_task

__all__ = ["Pair", "Task", "find_task", "task_names"]
