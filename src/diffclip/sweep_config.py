"""The recipe of a sweep: variants of one training recipe × seeds, and what is measured on each. TOML in, validated.

`docs/sweeps.md` is the reference. A sweep states its base recipe, what each variant changes in it, and the groups of
tasks that its table has as columns; what is to be evaluated follows from the groups.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from diffclip.config import STRICT, Count, Recipe, validate
from diffclip.errors import UserError, describe
from diffclip.evaluation.results import NOT_SCORES
from diffclip.evaluation.run.hooks import check_evaluations
from diffclip.evaluation.stats.significance import FEWEST_FLIPS, LEVEL, MOST_FLIPS
from diffclip.evaluation.task import get_task, is_evidence, metric_of
from diffclip.recipe_files import find_recipe, merge_tables, read_toml, shipped
from diffclip.reporting.design import Design, Name, Outcome
from diffclip.text import did_you_mean, listed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model to train: what differs from the base recipe."""

    __pydantic_config__ = STRICT

    name: Name
    set: dict[str, Any] = field(default_factory=dict)
    """Settings of the recipe, as `set.model.overrides.lambda_init = 0.5`."""

    @property
    def folder(self) -> str:
        """The name as that of a folder: DiffCLIP* is `diffclip-star`."""
        text = self.name.lower()
        for sign, word in SIGNS.items():
            text = text.replace(sign, f" {word} ")
        return re.sub(r"[^\w.]+", "-", text).strip("-.") or "variant"


SIGNS = {"*": "star", "†": "dagger", "λ": "lambda", "+": "plus", "−": "-", "ε": "eps"}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Variants of a recipe, each trained with every seed and measured alike."""

    __pydantic_config__ = STRICT

    base: str
    """The recipe that all variants share: a path from this file's folder, or the name of one that the package has."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0, 1, 2)
    baseline: str = ""
    """The variant that the others are compared with; by default the first."""
    set: dict[str, Any] = field(default_factory=dict)
    """Settings that replace the base recipe's in all variants, unless a variant sets them itself."""
    variant: Annotated[tuple[Variant, ...], Field(min_length=1)]
    data: dict[str, str] = field(default_factory=dict)
    """Name → path, as `diffclip eval --data` takes them; `holdout` is what the training data leave out. A name that
    is not here is one of the registry's."""
    fit: bool = False
    """Whether the number of pairs decides how many are the holdout, and the batch, in place of the base recipe."""
    group: Annotated[tuple[Outcome, ...], Field(min_length=1)]
    design: Design | None = None
    """How the results will be judged; without one they are exploratory."""

    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Data set → the tasks that any group asks of it."""
        asked: dict[str, dict[str, None]] = {}
        for group in self.group:
            for name in group.data:
                asked.setdefault(name, {})[group.task] = None
        return {name: tuple(tasks) for name, tasks in asked.items()}


_SWEEP: TypeAdapter[Sweep] = TypeAdapter(Sweep)


def load_sweep(*paths: str | Path, base: Path | None = None, settings: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep from one file or several: later ones win over earlier ones, table by table.

    A file that says `extends = "OTHER.toml"` starts from that one. base: another base recipe. settings: nested as in a
    recipe, put into `set`. Raises UserError where a file is missing, is not TOML, or the whole holds a wrong key or
    value.
    """
    table: dict[str, Any] = {}
    for path in paths:
        table = merge_tables(table, _read_with_parents(find_recipe(path, "sweep"), ()))
    if base is not None:
        table["base"] = str(_base_file(base))
    where = " with ".join(map(str, paths))
    try:
        sweep = _SWEEP.validate_python(table)
    except ValidationError as error:
        raise UserError(f"{where}: {describe(error)}") from None
    _check(sweep, where)
    _check_design(sweep, where)
    baseline = sweep.baseline or sweep.variant[0].name
    return replace(sweep, baseline=baseline, set=merge_tables(sweep.set, settings or {}))


def _read_with_parents(path: Path, above: Sequence[Path]) -> dict[str, Any]:
    """The tables of a file over those of the file which it extends; `base` becomes an absolute path."""
    table = read_toml(path, "sweep", typed=not above)
    if isinstance(table.get("base"), str):
        folder = path.parent if path.is_file() else Path()  # that of a pipe holds no recipes
        base = Path(os.path.realpath(folder / Path(table["base"]).expanduser()))
        table["base"] = str(base if base.exists() else shipped().get(table["base"], base))
    parent = table.pop("extends", None)
    if parent is None:
        return table
    here = Path(os.path.realpath(path))
    if not isinstance(parent, str) or here in above:
        problem = "extends itself" if isinstance(parent, str) else f"extends: expected a file's name, found {parent!r}"
        raise UserError(f"{path}: {problem}")
    return merge_tables(_read_with_parents(path.parent / parent, (*above, here)), table)


def _base_file(base: Path) -> Path:
    """Where another base recipe lies. Raises UserError for a pipe, which can be read but once."""
    path = find_recipe(base).resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"--base {base}: every run of a sweep reads it, so give a file")
    return path


def _check(sweep: Sweep, path: str) -> None:
    names = [variant.name for variant in sweep.variant]
    folders = [variant.folder for variant in sweep.variant]
    for what, values in (("variant", folders), ("group", [g.name for g in sweep.group]), ("seed", sweep.seeds)):
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise UserError(f"{path}: two of the {what}s are called {twice[0]!r}")
    if sweep.baseline and sweep.baseline not in names:
        raise UserError(f"{path}: baseline = {sweep.baseline!r} is no variant; there are {', '.join(names)}")
    for group in sweep.group:
        if not group.metric and not get_task(group.task).headline:
            raise UserError(f"{path}: group {group.name!r}: give a metric of {group.task}, as results.jsonl calls it")
        task = get_task(group.task)
        known = [metric.key for metric in task.metrics if metric.key not in NOT_SCORES]
        metric = group.resolved_metric
        if metric in NOT_SCORES or metric_of(task.result, metric) is None:
            raise UserError(
                f"{path}: group {group.name!r}: {group.task} has no metric {metric!r}{did_you_mean(metric, known)}; "
                f"it has {', '.join(known)}"
            )


def _check_design(sweep: Sweep, path: str) -> None:
    design = sweep.design
    if design is None:
        return
    by_name = {group.name: group for group in sweep.group}
    named = (design.primary, *design.secondary)
    for place, name in enumerate(named):
        if name not in by_name:
            raise UserError(
                f"{path}: design: {name!r} is no group{did_you_mean(name, by_name)}; there are {listed(by_name)}"
            )
        if name in named[:place]:
            raise UserError(f"{path}: design: {name!r} is named twice")
        task, metric = get_task(by_name[name].task).result, by_name[name].resolved_metric
        if not is_evidence(task, metric):
            raise UserError(
                f"{path}: design: {name!r} is of {metric}, which is no evidence between two kinds of attention "
                f"(docs/analysis.md): judge {metric}_by_occlusion instead"
            )
    count, comparisons = len(sweep.seeds), len(sweep.variant) - 1
    if count < 2:
        raise UserError(f"{path}: design: one seed judges nothing: give seeds = [0, 1, 2], or as many as --power says")
    if design.test == "permutation" and not FEWEST_FLIPS <= count <= MOST_FLIPS:
        raise UserError(
            f'{path}: design: test = "permutation" needs {FEWEST_FLIPS} to {MOST_FLIPS} seeds, the sweep has {count}; '
            f'test = "t" works with two'
        )
    if design.test == "permutation" and comparisons * 2 / 2**count >= LEVEL:
        raise UserError(
            f"{path}: design: {comparisons} variants against the baseline cannot reach 5 % by sign flips of {count} "
            "seeds: take more"
        )


def recipe_of(sweep: Sweep, variant: Variant, seed: int) -> Recipe:
    """The training recipe of one run. Raises UserError where it is not a valid one."""
    table = read_toml(sweep.base, "recipe")
    for changes in (sweep.set, variant.set, {"seed": seed}):
        table = merge_tables(table, changes)
    where = f"{sweep.base} with what {variant.name} sets"
    recipe = validate(table, where)
    check_evaluations(recipe, where)
    return recipe
