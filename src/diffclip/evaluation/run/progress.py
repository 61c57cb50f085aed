"""What a person reads while an evaluation runs: a plan, a bar or lines with the time left, each result."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import Settings
from diffclip.evaluation.results import MAX_SKIPPED, Failure, Result
from diffclip.evaluation.run.named_model import NamedModel
from diffclip.evaluation.run.plan import Job, JobList
from diffclip.evaluation.run.suite import Outcome, ValidationHook, evaluate
from diffclip.evaluation.task import Task
from diffclip.terminal import Pace
from diffclip.text import duration

FIRST_ESTIMATE, BETWEEN_ESTIMATES = 5.0, 60.0
"""Seconds of encoding until a log gets the time left, and between that and the next time."""


class Reporter(ValidationHook):
    """Prints how an evaluation goes on: under a moving bar on a terminal, in plain lines elsewhere.

    The time left is that of encoding the images and texts that are left, at the speed of the last minute. Images and
    texts weigh by the size of their tower. What tasks do with features comes on top.
    """

    def __init__(self, console: Console, *, brief: bool = False) -> None:
        """brief: on a terminal the bar alone, and what failed or is missing."""
        self._console, self._brief = console, brief and console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._progress.add_task("", total=None, left="")
        self._total = self._before = self._step = 0.0  # work: of all, of the steps before this one, of this one
        self._pace, self._next = Pace(), FIRST_ESTIMATE
        self._skipped: set[tuple[str, str, str]] = set()

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_plan(self, plan: JobList) -> None:
        for line in () if self._brief else describe(plan):
            self._line(line)
        self._total = sum(job.work for job in plan.jobs)
        self._progress.update(self._bar, total=self._total or None)

    def on_split(self, job: Job, split: str) -> None:
        left, size = job.images[split], job.sizes[split]
        what = f"{job.data.name} {split} with {job.model.pretrained}"
        self._progress.update(self._bar, description=f"{job.data.name} {split}")
        if not self._console.is_terminal:
            self._line(f"{what}: encoding {left:,} of {size:,} images" if left else f"{what}: features are known")
        self._start(job.work_of_split(split))

    def on_images(self, job: Job, split: str, images: int) -> None:
        left, size = job.images[split], job.sizes[split]
        share = max(0, images - (size - left)) / left if left else 1.0
        self._advance(share, images, size)

    def on_task(self, job: Job, task: Task) -> None:
        self._progress.update(self._bar, description=f"{job.data.name} {task.name}")
        passes, what = task.passes, f"{job.data.name} {task.name} with {job.model.pretrained}"
        if not self._console.is_terminal:
            if passes:
                self._line(f"{what}: {job.sample:,} images, {passes:g} times")
            elif "train" in job.sizes and "train" in task.splits:
                self._line(f"{what}: learning from {job.sizes['train']:,} images")
        self._start(job.work_of(task))

    def on_progress(self, job: Job, task: Task, done: int, total: int) -> None:
        self._advance(done / total, done, total, "images" if task.passes else "texts")

    def on_task_end(self, job: Job, task: Task) -> None:
        self._start(0.0)

    def _start(self, work: float) -> None:
        """A step of so much work comes; the one before counts as done, however far it came."""
        self._before += self._step
        self._step = work
        self._pace.start(self._before)
        self._progress.update(self._bar, completed=self._before)

    def _advance(self, share: float, count: int, of: int, what: str = "images") -> None:
        """A share of the step's work is done: `count` of its images or texts."""
        done = self._before + min(share, 1.0) * self._step
        self._pace.at(done)
        seconds = self._pace.remaining(self._total)
        left = "" if seconds is None else duration(seconds)
        self._progress.update(self._bar, completed=done, left=left)
        if left and not self._console.is_terminal and count < of and self._pace.seconds >= self._next:
            self._next = self._pace.seconds + BETWEEN_ESTIMATES
            self._line(f"  {count:,} of {of:,} {what}; about {left} left in all")

    def print_result(self, outcome: Outcome) -> None:
        """A line for a result, in percent, and once for each model and split what could not be read."""
        result = outcome.result
        where = (result.dataset, result.pretrained)
        for split, read in result.images.items():
            told = f"{result.dataset}{'' if split == 'test' else f' {split}'}: skipped images: {read}"
            if read.skipped and (*where, told) not in self._skipped:
                self._skipped.add((*where, told))
                self._line(told)
        if self._brief:
            return
        metrics = {name: value for name, value in result.metrics.items() if "/" not in name}
        shown = "  ".join(
            f"{name.replace('_retrieval_', ' ')} {f'{value:.3g}' if name == 'C' else f'{100 * value:.1f}'}"
            for name, value in metrics.items()
        )
        how = f"  ({outcome.seconds:.1f} s)" if outcome.fresh else "  (known)"
        self._line(f"{result.pretrained}  {result.dataset}  {result.task}:  {shown}{how}")

    def print_failure(self, failure: Failure) -> None:
        self._line(f"failed: {failure}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def describe(plan: JobList) -> list[str]:
    """What will be computed, what is known already, and what cannot be, in lines."""
    todo, known = sum(len(job.todo) for job in plan.jobs), sum(len(job.known) for job in plan.jobs)
    images = sum(sum(job.images.values()) for job in plan.jobs)
    cached = sum(sum(job.sizes.values()) for job in plan.jobs) - images
    lines = [f"{todo} results to compute, {known} known already{' (--force computes them anew)' if known else ''}"]
    if todo:
        lines[0] += f"; {images:,} images to encode" + (f", {cached:,} features known already" if cached else "")
    for (data, tasks), job in {(job.data.name, job.todo): job for job in plan.jobs if job.todo}.items():
        sizes = ", ".join(f"{split} {size:,}" for split, size in job.sizes.items())
        names = ", ".join(task.name for task in tasks)
        lines.append(f"  {data}: {names}" + (f"; images: {sizes}" if sizes else ""))
    for data, lacking in plan.unable.items():
        lines += [f"  {data} cannot serve {task}: it needs {needs}" for task, needs in lacking.items()]
    return lines


def run_suite(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    console: Console,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    *,
    cache: FeatureCache | None = None,
    force: bool = False,
    max_skipped: float = MAX_SKIPPED,
    brief: bool = False,
) -> list[Failure]:
    """Every task of every data set with every model, printed on the console; returns what failed.

    So counts a result of which more than a share `max_skipped` of a split's images are missing, known ones too. brief:
    on a terminal nothing is printed but that.
    """
    failures: list[Failure] = []
    with Reporter(console, brief=brief) as reporter:
        for outcome in evaluate(models, data, path, settings=settings, cache=cache, force=force, hook=reporter):
            if isinstance(outcome, Outcome):
                reporter.print_result(outcome)
                failures += [partial for partial in _partial(outcome.result, max_skipped) if partial not in failures]
            else:
                reporter.print_failure(outcome)
                failures.append(outcome)
    return failures


def _partial(result: Result, max_skipped: float) -> list[Failure]:
    """A line for each split of which more images are missing than may be."""
    return [
        Failure(
            result.dataset,
            f"skipped {read} {split} images, more than {max_skipped:.3g} of them (max_skipped): its results are of "
            "the others",
            result.pretrained,
            partial=True,
        )
        for split, read in result.images.items()
        if read.share_skipped > max_skipped
    ]


def raise_failures(failures: Sequence[Failure]) -> None:
    """Raises UserError with the list, if there is any."""
    partial = sum(failure.partial for failure in failures)
    failed = len(failures) - partial
    if failures:
        heads = [f"{partial} of a part of the images"] * (partial > 0)
        if failed:
            heads = [f"{failed} could not be done", *heads]
        raise UserError(f"{', '.join(heads)}, everything else is:" if failed else f"{heads[0]}:", *map(str, failures))
