"""How many seeds a sweep needs: from the deviation of a pilot's differences, or a given one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation.stats import power
from diffclip.evaluation.stats.significance import LEVEL
from diffclip.reporting.compare import compare_variants
from diffclip.sweep import Run, seconds_of, study_of
from diffclip.sweep_config import Sweep

EFFECTS = (0.5, 1.0, 2.0, 5.0)
"""Points."""
SIZES = (3, 5, 10)


@dataclass(frozen=True)
class Deviation:
    """A standard deviation of the paired difference of the primary outcome, in points."""

    sd: float
    said: str
    """Where it comes from."""


@dataclass(frozen=True)
class Needed:
    """What one deviation asks for, at 80 % power."""

    deviation: Deviation
    seeds: dict[str, int | None]
    """Effect in words → seeds a variant; None for more than 2,000."""
    smallest: dict[int, float]
    """Seeds → the smallest effect that they show, in points."""


def deviations(sweep: Sweep, out: Path, given: float | None) -> list[Deviation]:
    """The given one, or the largest of a pilot's variants and what it is below with 80 % confidence.

    Raises UserError where neither is there.
    """
    if given is not None:
        if not (given > 0 and math.isfinite(given)):
            raise UserError(f"--sd {given:g}: give a number of points above 0")
        return [Deviation(given, "as given")]
    name = outcome_of(sweep)
    rows = compare_variants(out / "results.jsonl", replace(study_of(sweep, out), design=None))
    pilots = [
        (100 * row.difference.sd, row.difference.count, row.model)
        for row in rows
        if row.group == name and row.difference and row.difference.sd and row.difference.estimable
    ]
    if not pilots:
        raise UserError(
            f"{out} has no pilot: two seeds or more of two variants with {name} measured. Give the standard deviation "
            "of the paired difference in points, such as --sd 0.5, or train a pilot into another --out"
        )
    sd, count, model = max(pilots)
    return [
        Deviation(sd, f"{model}, pilot of {count} seeds"),
        Deviation(power.upper_sd(sd, count), "upper 80 % bound of it"),
    ]


def outcome_of(sweep: Sweep) -> str:
    """The primary outcome, or the first where none is declared."""
    return sweep.design.primary if sweep.design else sweep.group[0].name


def needed(sweep: Sweep, deviation: Deviation) -> Needed:
    """The seeds for each effect, and the effect for each number of seeds, all variants held together."""
    level, sd = LEVEL / max(1, len(sweep.variant) - 1), deviation.sd
    seeds = {f"{effect:g}": power.seeds_needed(effect, sd, level) for effect in EFFECTS}
    if sweep.design and sweep.design.margin:
        margin = sweep.design.margin
        seeds[f"equivalent, ± {margin:g}"] = power.seeds_for_equivalence(margin, sd, level)
    sizes = sorted({*SIZES, *([len(sweep.seeds)] if len(sweep.seeds) > 1 else [])})
    return Needed(deviation, seeds, {n: power.smallest_effect(sd, n, level) for n in sizes})


def hours_a_seed(runs: Sequence[Run]) -> float | None:
    """Training every variant once; None where the training data are not here."""
    seconds = [seconds_of(run) for run in runs if run.seed == runs[0].seed]
    known = [each for each in seconds if each is not None]
    return sum(known) / 3600 if len(known) == len(seconds) else None
