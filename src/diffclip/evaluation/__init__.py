"""What a model can do: every benchmark, each a file of `tasks`, and what runs them.

Importing this imports no torch: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffclip.evaluation import results
    from diffclip.evaluation.run import suite
    from diffclip.evaluation.tasks import few_shot, fine_grained, linear_probe, retrieval, zero_shot

__all__ = ["few_shot", "fine_grained", "linear_probe", "results", "retrieval", "suite", "zero_shot"]

_HOME = {"suite": "run.suite"} | {
    name: f"tasks.{name}" for name in ("few_shot", "fine_grained", "linear_probe", "retrieval", "zero_shot")
}
_PARTS = ("corruption", "datasets", "features", "pope", "results", "run", "stats", "task", "tasks")


def __getattr__(name: str) -> Any:
    if name in _HOME or name in _PARTS:
        return importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
