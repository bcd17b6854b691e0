"""What each application forgets, keeps and measures: one file a task. Every module of this folder is imported."""

from tasks.task import RecipeArguments, Task, list_tasks, register_task, task_class
from wagle_trainer.utils.registry import import_all

import_all(__name__, __path__)

__all__ = ["RecipeArguments", "Task", "list_tasks", "register_task", "task_class"]
