"""What a report is made of: results and runs, read from wherever they lie and put into one table.

Inputs are run directories, folders that hold some, results.jsonl files, and the JSON and CSV files of the LAION
CLIP benchmark. Damaged lines are skipped with a warning, as `evaluation.results` does.
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffclip import reading
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import Key, PerExampleScores, Result
from diffclip.evaluation.task import title_of_task
from diffclip.recipe_files import read_toml
from diffclip.reporting.design import FILE as DESIGN
from diffclip.reporting.design import Study, read_study

log = logging.getLogger(__name__)

# Never looked into for results: weights, and the values of single examples.
SKIPPED_FOLDERS = {"checkpoints", "examples", "tensorboard"}
READ = ("results.jsonl", "metrics.jsonl", DESIGN)
# The benchmark's linear probe names its metrics apart.
LAION_PROBE = "lp_"


@dataclass(frozen=True)
class RunDirectory:
    """A training run's directory; recipe and config are empty where the run has none."""

    path: Path
    recipe: dict[str, Any]
    """recipe.toml, resolved."""
    config: dict[str, Any]
    """config.json: the model's."""

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end: its config is written with its weights."""
        return bool(self.config)

    @property
    def seed(self) -> int | None:
        """The seed it was trained with."""
        seed = self.recipe.get("seed")
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Collection:
    """Results by what they are of, the file of each, and the run directories."""

    results: tuple[Result, ...]
    origin: Mapping[Key, Path]
    """The file that a result was read from; its examples lie beside it."""
    runs: tuple[RunDirectory, ...]
    studies: tuple[tuple[Path, Study], ...] = ()
    """The sweeps among the inputs: the results.jsonl of each, and what it declared."""
    notes: tuple[str, ...] = ()
    """What was not merged, or had to be chosen between, one line each."""
    written: Mapping[Key, Key] = field(default_factory=dict)
    """What the file calls a result, of those whose data set has another name here."""
    _examples: dict[Key, PerExampleScores | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_file(cls, path: Path, wanted: Callable[[Result], bool] = lambda result: True) -> "Collection":
        """The wanted results of one results.jsonl; none where there is no such file."""
        return _together([(result, path) for result in results.read(path) if wanted(result)], ())

    def examples(self, key: Key) -> PerExampleScores | None:
        """The values of single examples of a result, where they are kept."""
        if key not in self._examples:
            written = self.written.get(key, key)
            self._examples[key] = results.load_examples(self.origin[key], written) if key in self.origin else None
        return self._examples[key]

    def run_of(self, pretrained: str) -> RunDirectory | None:
        """The directory of the run that results call `pretrained`, if it is there.

        The path may have been written from another working directory, so the longest common ending counts.
        """
        wanted = Path(pretrained)
        exact = [run for run in self.runs if run.path == wanted.resolve()]
        if exact:
            return exact[0]
        parts = wanted.parts
        matches = [(_common_ending(run.path.parts, parts), run) for run in self.runs]
        longest = max((length for length, _ in matches), default=0)
        nearest = [run for length, run in matches if length == longest]
        # One name alone is no proof: many runs are called "clip". All of a relative path's parts are.
        if len(nearest) == 1 and longest and (longest >= 2 or longest == len(parts)):
            return nearest[0]
        return _read_run(wanted) if wanted.is_dir() else None


def collect(inputs: Sequence[Path]) -> Collection:
    """Read every input, in the order of their paths, so that the order in which they are given decides nothing.

    Raises UserError for an input that does not exist or is of no known form, and where nothing holds a result or run.
    """
    found: list[tuple[Result, Path]] = []
    runs: dict[Path, RunDirectory] = {}
    studies: dict[Path, Study] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"there is no {given}: give run directories or results.jsonl files")
    for given in sorted(inputs, key=lambda path: path.resolve()):
        for path in _files(given) if given.is_dir() else [given]:
            if path.name == "metrics.jsonl":
                run = _read_run(path.parent)
                runs[run.path] = run
            elif path.name == DESIGN:
                studies[path.with_name("results.jsonl")] = read_study(path)
            elif path.resolve() not in {origin.resolve() for _, origin in found}:
                found += [(result, path) for result in _read_results(path)]
    if not found and not runs:
        places = ", ".join(map(str, inputs)) or "nothing"
        raise UserError(f"no results in {places}: expected results.jsonl, which `diffclip eval` writes")
    return replace(_together(found, tuple(runs.values())), studies=tuple(studies.items()))


def _together(found: Sequence[tuple[Result, Path]], runs: tuple[RunDirectory, ...]) -> Collection:
    """One collection of results and their files.

    Of one data set and task with different numbers of test examples, all but the largest get the number into their
    name, so that they are never compared. Of results that are of the same, that of the newest file counts.
    """
    sizes = [_size(result, path) for result, path in found]
    by_test: dict[tuple[str, str], set[int]] = {}
    for (result, _), size in zip(found, sizes, strict=True):
        if size is not None:
            by_test.setdefault((result.dataset, result.task), set()).add(size)
    notes: dict[str, None] = {}
    chosen: dict[Key, tuple[Result, Path, Key]] = {}
    for (result, path), size in zip(found, sizes, strict=True):
        key, largest = result.key, max(by_test.get((result.dataset, result.task), {0}))
        if size is not None and size < largest:
            name = f"{result.dataset} ({size:,})"
            notes[_apart(result, by_test[result.dataset, result.task])] = None
            result = replace(result, dataset=name)
        other = chosen.get(result.key)
        if other is not None:
            newest = max(path, other[1], key=lambda each: (each.stat().st_mtime_ns, str(each.resolve())))
            if other[0].metrics != result.metrics and path != other[1]:
                notes[_twice(result, newest, other[1] if newest == path else path)] = None
            if newest != path:
                continue
        chosen[result.key] = (result, path, key)
    return Collection(
        tuple(result for result, _, _ in chosen.values()),
        {key: path for key, (_, path, _) in chosen.items()},
        runs,
        notes=tuple(notes),
        written={key: written for key, (_, _, written) in chosen.items() if written != key},
    )


def _size(result: Result, path: Path) -> int | None:
    """How many test examples a result is of, as its kept examples or else its line say; None where neither does."""
    count = results.count_examples(path, result.key)
    stated = getattr(result, "n", None)
    return count if count is not None else stated if isinstance(stated, int) else None


def _apart(result: Result, sizes: Iterable[int]) -> str:
    *fewer, most = (f"{size:,}" for size in sorted(sizes))
    called = " and ".join(f"{result.dataset} ({size})" for size in fewer)
    return (
        f"{result.dataset}, {title_of_task(result.task)}: results of {', '.join(fewer)} and of {most} test examples "
        f"are not compared with each other; those of fewer stand as {called}"
    )


def _twice(result: Result, newer: Path, older: Path) -> str:
    what = f"{result.dataset}, {title_of_task(result.task)}, of {result.model} ({result.pretrained})"
    return f"{what} has other numbers in {older} than in {newer}, which is newer and counts"


def _files(folder: Path) -> Iterator[Path]:
    """results.jsonl, metrics.jsonl and design.toml of a folder and of the folders in it, in order of their names."""
    entries = sorted(folder.iterdir())
    yield from (
        entry for entry in entries if entry.name in ("results.jsonl", "metrics.jsonl", DESIGN) and entry.is_file()
    )
    for entry in entries:
        if entry.is_dir() and entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("."):
            yield from _files(entry)


def _read_run(path: Path) -> RunDirectory:
    recipe: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        recipe = read_toml(path / "recipe.toml", "recipe") if (path / "recipe.toml").exists() else {}
    except UserError as error:
        log.warning("%s; it is passed over", error)
    try:
        table = reading.parse_json(reading.read_text(path / "config.json"))
        inside = table.get("model", table) if isinstance(table, dict) else {}  # of 0.1 and before: by itself
        config = inside if isinstance(inside, dict) else {}
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is passed over: %s", path / "config.json", error)
    return RunDirectory(path.resolve(), recipe, config)


def _read_results(path: Path) -> list[Result]:
    if path.suffix == ".jsonl":
        return results.read(path)
    if path.suffix == ".json":
        return [_laion_json(path)]
    if path.suffix == ".csv":
        return _laion_csv(path)
    raise UserError(f"{path}: expected a run directory, results.jsonl, or the LAION CLIP benchmark's .json or .csv")


def _laion_json(path: Path) -> Result:
    try:
        table = reading.parse_json(reading.read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    needed = ("dataset", "model", "pretrained", "task", "metrics")
    if not isinstance(table, dict) or not all(name in table for name in needed):
        raise UserError(f"{path}: expected the keys {', '.join(needed)}, as the LAION CLIP benchmark writes them")
    return _laion_result(table, table["metrics"], path)


def _laion_csv(path: Path) -> list[Result]:
    try:
        rows = list(csv.DictReader(io.StringIO(reading.read_text(path, "utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    needed = ("dataset", "model", "pretrained", "task")
    if not rows or not all(name in rows[0] for name in needed):
        raise UserError(f"{path}: expected the columns {', '.join(needed)} and one a metric")
    return [
        _laion_result(row, {name: value for name, value in row.items() if name not in needed}, path) for row in rows
    ]


def _laion_result(table: dict[str, Any], metrics: Any, where: Path) -> Result:
    if not isinstance(metrics, dict):
        raise UserError(f"{where}: expected metrics as numbers by name, found {str(metrics)[:80]}")
    numbers = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):  # per-class tables and names of files are no metrics
            continue
        if math.isfinite(number):
            numbers[str(name).removeprefix(LAION_PROBE)] = number
    language = str(table.get("language") or "en")
    named: dict[str, Any] = {name: str(table[name]) for name in ("dataset", "model", "pretrained", "task")}
    return Result(**named, metrics=numbers, language=language)


def _common_ending(first: Sequence[str], second: Sequence[str]) -> int:
    length = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        length += 1
    return length
