"""One file a benchmark: what it needs, what it measures, its metrics and their titles. `task.TASKS` lists them."""

import importlib
from typing import Any

from diffclip.evaluation.task import TASKS


def __getattr__(name: str) -> Any:
    if name in TASKS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
