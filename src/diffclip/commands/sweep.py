"""`diffclip sweep`: variants of a recipe × seeds, and their table.

What is done already is not done again, so the same command goes on after it was stopped or killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffclip.errors import Stopped, UserError
from diffclip.recipe_files import run_name
from diffclip.text import say_loading

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from diffclip.sweep import Remaining, Run
    from diffclip.sweep_config import Sweep

ROUGH = 1000
"""Resamples of the intervals between two runs; the last table has all."""


def sweep(
    recipes: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path | None = None,
    base: Path | None = None,
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
    root: Path | None = None,
    settings: Annotated[tuple[str, ...], arg(name="set")] = (),
    jobs: int = 1,
    allow_pipe: bool = False,
    dry_run: bool = False,
    power: bool = False,
    sd: float | None = None,
) -> None:
    """Train variants of a recipe with several seeds, judge by the sweep's design.

    The same command goes on where it stopped. Status 1: something was not done.

    Args:
        recipes: The sweep, a TOML file or the name of one that the package has, such as figure5; what further files
            state replaces what it states.
        out: Where runs, results.jsonl and table.md go; by default runs/NAME, NAME being the files' names.
        base: Another base recipe.
        seeds: Only these of the sweep's seeds; of a sweep without a design any others.
        variants: Only these variants, by name; the table has all.
        root: The folder of the data sets that the sweep gives no path for; by default $DIFFCLIP_DATA, or data.
        settings: SECTION.KEY=VALUE of the base recipe, such as data.train.path=/data/cc12m.
        jobs: Runs at a time, each with its share of the threads. Small models train soonest with one thread each.
        allow_pipe: Let the files train on pipe:COMMAND. A path typed after --set needs no leave.
        dry_run: Say what is left to do, how many steps and about how long, and stop.
        power: Say how many seeds which difference of the primary outcome takes, how long they train, and stop.
        sd: For --power: the standard deviation of the paired difference, in points; by default that of OUT's
            results, a pilot.
    """
    if not recipes:
        raise UserError("no sweep: give a TOML file, or the name of one that the package has, such as figure5")
    say_loading()
    run(
        recipes,
        out or run_name(*recipes),
        base=base,
        seeds=seeds,
        variants=variants,
        root=root,
        settings=settings,
        jobs=jobs,
        allow_pipe=allow_pipe,
        dry_run=dry_run,
        power=power,
        sd=sd,
    )


def run(
    paths: Sequence[Path],
    out: Path,
    *,
    base: Path | None,
    seeds: Sequence[int],
    variants: Sequence[str],
    root: Path | None,
    settings: Sequence[str],
    dry_run: bool,
    jobs: int = 1,
    allow_pipe: bool = False,
    power: bool = False,
    sd: float | None = None,
) -> None:
    """Train, measure and tabulate what is not done already; print how it goes.

    Raises UserError, once all else is done, with a list of what could not be.
    """
    from diffclip import durable
    from diffclip.config import to_toml
    from diffclip.evaluation import results
    from diffclip.evaluation.run.progress import raise_failures
    from diffclip.evaluation.run.suite import Failure
    from diffclip.recipe_files import parse_settings
    from diffclip.reporting.tables import comparison
    from diffclip.reporting.verdicts import by_seed
    from diffclip.sweep import (
        Job,
        declare,
        do,
        open_data,
        plan,
        remaining,
        study_of,
        train_and_measure,
        write_table,
    )
    from diffclip.sweep_config import load_sweep
    from diffclip.sweep_sizes import fit_sizes, stated
    from diffclip.terminal import Terminal
    from diffclip.training.side_by_side import Here, Team

    _check_jobs(jobs)
    typed = parse_settings(settings)
    sweep = load_sweep(*paths, base=base, settings=typed)
    if sd is not None and not power:
        raise UserError(f"--sd {sd:g} is for --power, which says how many seeds are needed")
    if sweep.design and (strange := [str(seed) for seed in seeds if seed not in sweep.seeds]):
        raise UserError(
            f"--seeds {' '.join(strange)}: the design has {', '.join(map(str, sweep.seeds))}, and seeds that are added "
            "after others were seen make false verdicts: state seeds = [...] in a file and give another --out"
        )
    if seeds and not sweep.design:
        sweep = replace(sweep, seeds=tuple(dict.fromkeys(seeds)))
    sweep, sizes = fit_sizes(sweep)
    runs = [run for run in plan(sweep, out, variants) if not seeds or run.seed in seeds]
    console = Terminal()
    if power:
        console.print(power_table(sweep, out, runs, sd), highlight=False)
        return
    data, failures = open_data(sweep, root)
    if sizes:
        console.print(sizes, highlight=False, soft_wrap=True)
    for failure in failures:
        console.print(f"Not measured: {failure}", style="yellow", highlight=False, soft_wrap=True)
    if dry_run:
        console.print(remaining_table(remaining(sweep, runs, out)), highlight=False)
        return
    study = study_of(sweep, out)
    declare(study, out)
    durable.write_bytes(out / "sweep.toml", to_toml(sweep).encode(errors="surrogateescape"))
    before = results.read(out / "results.jsonl")
    left: dict[str, Job] = {}
    for number, each in enumerate(runs, start=1):
        name = f"{number} of {len(runs)}: {each}"
        try:
            if each.measured(sweep, before):
                console.print(f"{name}: measured before; its weights were deleted", highlight=False, soft_wrap=True)
                continue
        except UserError as error:
            failures.append(Failure(str(each), str(error)))
            console.print(f"{each} failed: {error}", style="red", highlight=False, soft_wrap=True)
            continue
        is_typed = each.recipe.data.train.path == stated(typed, "data", "train", "path")
        left[name] = Job(each, sweep, out, root, allow_pipe or is_typed)

    def done(name: str, failed: Sequence[Failure]) -> None:
        failures.extend(failed)
        write_table(sweep, out, resamples=ROUGH)
        if jobs > 1:
            console.print(f"{name}: {'failed' if failed else 'done'}", style="bold", highlight=False, soft_wrap=True)

    at = "training"
    try:
        if jobs > 1 and left:
            with Team(jobs, console) as team:  # of as many threads each when few are left: bits depend on it
                team.run(do, left, done)
        else:
            for name, job in left.items():
                at = f"training {job.run}"
                console.print(name, style="bold", highlight=False)
                done(name, train_and_measure(job.run, data, out, Here(console), allow_pipe=job.allow_pipe))
    except Stopped:
        raise Stopped(f"stopped while {at}, and saved; the same command goes on") from None
    rows = write_table(sweep, out)
    console.print(comparison.sweep(rows, study))
    asked = sweep.design.primary if sweep.design else sweep.group[0].name
    for line in by_seed([row for row in rows if row.group == asked or row.missing or row.left_out]):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"Written to {out}: table.md, table.csv, seeds.csv, results.jsonl", highlight=False, soft_wrap=True)
    raise_failures(failures)


def _check_jobs(jobs: int) -> None:
    """Raises UserError for no process, and where there is neither a thread for each nor a GPU."""
    import torch

    from diffclip.distributed import default_device

    threads = torch.get_num_threads()
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give 1 or more")
    if jobs > threads and default_device().type == "cpu":
        raise UserError(f"--jobs {jobs}: there are {threads} threads here (OMP_NUM_THREADS), and each takes one")


def power_table(sweep: Sweep, out: Path, runs: Sequence[Run], sd: float | None) -> Group:
    """Seeds and hours by effect, and the smallest effect by seeds, for each deviation that is known."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    from diffclip.sweep_power import deviations, hours_a_seed, needed, outcome_of

    found = [needed(sweep, deviation) for deviation in deviations(sweep, out, sd)]
    hours = hours_a_seed(runs)

    def cost(seeds: int | None) -> str:
        if seeds is None:
            return "more than 2,000"
        return f"{seeds}" if hours is None else f"{seeds}, {seeds * hours:,.1f} h"

    names = ", ".join(dict.fromkeys(run.variant.name for run in runs))
    times = f"hours are of training {names}" if hours is not None else "hours are not known: no training data here"
    comparisons = len(sweep.variant) - 1
    caption = (
        f"{outcome_of(sweep)}, against {sweep.baseline}, with 80 % power at 5 % for {comparisons} "
        f"comparison{'s' * (comparisons > 1)} together. sd is that of the difference paired by seed, in points; "
        f"{times}. The seeds of a pilot are not to be counted among the sweep's."
    )
    heads = (Column(Text(f"sd {one.deviation.sd:.2f}\n{one.deviation.said}")) for one in found)
    table = Table("to show, in points", *heads, box=None, padding=(0, 2, 0, 0))
    for effect in found[0].seeds:
        table.add_row(effect, *(cost(one.seeds[effect]) for one in found))
    table.add_section()
    for seeds in found[0].smallest:
        table.add_row(f"with {seeds} seeds", *(f"{one.smallest[seeds]:.1f} points" for one in found))
    return Group(table, "", caption)


def remaining_table(rows: Iterable[Remaining]) -> Table:
    """Steps and minutes of training that are left, by run."""
    from rich.table import Table

    table = Table("run", "state", "steps left", "minutes left", box=None, padding=(0, 2, 0, 0))
    seconds: float | None = 0.0
    for row in rows:
        if row.finished:
            table.add_row(str(row.run), "finished", "0", "0")
            continue
        state = f"at step {row.steps - row.left:,} of {row.steps:,}" if row.left < row.steps else "new"
        of_run = row.left * row.seconds if row.seconds else None
        table.add_row(str(row.run), state, f"{row.left:,}", _minutes(of_run))
        seconds = None if seconds is None or of_run is None else seconds + of_run
    table.add_section()
    table.add_row("all, in turn, evaluation apart", "", "", _minutes(seconds), style="bold")
    return table


def _minutes(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds / 60:.1f}"
