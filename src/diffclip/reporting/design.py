"""What a sweep declares before its first run: outcomes, seeds, test, margin. Nothing else is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from diffclip.config import STRICT
from diffclip.errors import UserError, describe
from diffclip.evaluation.datasets.registry import registry
from diffclip.evaluation.stats.significance import Test
from diffclip.evaluation.task import TASKS, get_task
from diffclip.recipe_files import read_toml

FILE = "design.toml"
Name = Annotated[str, Field(min_length=1)]
Role = Literal["primary", "secondary", ""]

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One column of a sweep's table: the mean of a metric over some data sets."""

    __pydantic_config__ = STRICT

    name: Name
    task: TaskName
    data: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of data sets: of `[data]`, or of the registry that `diffclip data list` shows."""
    metric: str = ""
    """As in results.jsonl; by default the task's headline. Retrieval, robustness, corruptions and noise have none."""

    @property
    def resolved_metric(self) -> str:
        return self.metric or get_task(self.task).headline

    def metric_on(self, data: str) -> str:
        """On one of the data sets: of a linear probe by default what the data set's protocol says."""
        entry = registry().get(data)
        if self.metric or self.task != "linear_probe" or entry is None or not entry.mean_per_class:
            return self.resolved_metric
        return "mean_per_class_recall"


@dataclass(frozen=True, kw_only=True)
class Design:
    """How the results of a sweep will be judged."""

    __pydantic_config__ = STRICT

    primary: Name
    """The outcome that the sweep is about: the name of a group."""
    secondary: tuple[Name, ...] = ()
    """Other outcomes that are judged, held together by Holm's correction. The rest is shown and not judged."""
    test: Test = "t"
    """Over the seeds, paired: Student's t, or all sign flips, for which it takes six seeds."""
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Points of the primary outcome within which two models count as equivalent; without it none ever does."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A design with what it is about. Written to OUT/design.toml before the first run."""

    __pydantic_config__ = STRICT

    baseline: str
    seeds: tuple[int, ...]
    weights: Mapping[str, str]
    """Variant → what results call its weights, with `*` for the seed."""
    outcome: tuple[Outcome, ...]
    design: Design | None = None
    """None: nothing was declared, so whatever comes out is exploratory."""

    def role(self, outcome: str) -> Role:
        if self.design is None:
            return ""
        return "primary" if outcome == self.design.primary else "secondary" if outcome in self.design.secondary else ""


_STUDY: TypeAdapter[Study] = TypeAdapter(Study)


def read_study(path: Path) -> Study:
    """Of a design.toml. Raises UserError for another form."""
    try:
        study = _STUDY.validate_python(read_toml(path, "design"))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None
    names = {outcome.name for outcome in study.outcome}
    asked = (study.design.primary, *study.design.secondary) if study.design else ()
    for name, known in ((study.baseline, study.weights), *((name, names) for name in asked)):
        if name not in known:
            raise UserError(f"{path}: {name!r} is none of {', '.join(known)}: `diffclip sweep` writes this file")
    return study
