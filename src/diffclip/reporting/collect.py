"""What a report is made of: results and runs, read from wherever they lie and put into one table.

Inputs are run directories, folders that hold some, results.jsonl files, and the JSON and CSV files of the LAION
CLIP benchmark. Damaged lines are skipped with a warning, as `evaluation.results` does.
"""

import csv
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import Key, PerExampleScores, Result

log = logging.getLogger(__name__)

# Never looked into for results: weights, and the values of single examples.
SKIPPED_FOLDERS = {"checkpoints", "examples", "tensorboard"}
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
    _examples: dict[Key, PerExampleScores | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_file(cls, path: Path) -> "Collection":
        """The results of one results.jsonl; none where there is no such file."""
        every = results.read(path)
        return cls(tuple(every), {result.key: path for result in every}, ())

    def examples(self, key: Key) -> PerExampleScores | None:
        """The values of single examples of a result, where they are kept."""
        if key not in self._examples:
            self._examples[key] = results.load_examples(self.origin[key], key) if key in self.origin else None
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
    """Read every input; of two results with one key the later wins.

    Raises UserError for an input that does not exist or is of no known form, and where nothing holds a result or run.
    """
    by_key: dict[Key, Result] = {}
    origin: dict[Key, Path] = {}
    runs: dict[Path, RunDirectory] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"there is no {given}: give run directories or results.jsonl files")
        for path in _files(given) if given.is_dir() else [given]:
            if path.name == "metrics.jsonl":
                run = _read_run(path.parent)
                runs[run.path] = run
                continue
            for result in _read_results(path):
                by_key.pop(result.key, None)
                by_key[result.key] = result
                origin[result.key] = path
    if not by_key and not runs:
        places = ", ".join(map(str, inputs)) or "nothing"
        raise UserError(f"no results in {places}: expected results.jsonl, which `diffclip eval` writes")
    return Collection(tuple(by_key.values()), origin, tuple(runs.values()))


def _files(folder: Path) -> Iterator[Path]:
    """results.jsonl and metrics.jsonl of a folder and of the folders in it, in order of their names."""
    entries = sorted(folder.iterdir())
    yield from (entry for entry in entries if entry.name in ("results.jsonl", "metrics.jsonl") and entry.is_file())
    for entry in entries:
        if entry.is_dir() and entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("."):
            yield from _files(entry)


def _read_run(path: Path) -> RunDirectory:
    recipe: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        recipe = tomli.loads((path / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read and is passed over: %s", path / "recipe.toml", error)
    try:
        table = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config = table if isinstance(table, dict) else {}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
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
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    needed = ("dataset", "model", "pretrained", "task", "metrics")
    if not isinstance(table, dict) or not all(name in table for name in needed):
        raise UserError(f"{path}: expected the keys {', '.join(needed)}, as the LAION CLIP benchmark writes them")
    return _laion_result(table, table["metrics"], path)


def _laion_csv(path: Path) -> list[Result]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
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
