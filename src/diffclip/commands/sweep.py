"""`diffclip sweep`: variants of a recipe × seeds, and their table."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffclip.errors import UserError


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
    dry_run: bool = False,
) -> None:
    """Train variants of a recipe with several seeds, measure all alike, and tabulate: mean ± sd, what is significant.

    The same command goes on where it was stopped. Exit status 1, with a list, where anything could not be done.

    Args:
        recipes: The sweep, a TOML file; what further files state replaces what it states.
        out: Where runs, results.jsonl and table.md go; by default runs/NAME, NAME being the files' names.
        base: Another base recipe.
        seeds: Other seeds than the sweep's.
        variants: Only these variants, by name; the table has all.
        root: The folder of the data sets that the sweep gives no path for; by default $DIFFCLIP_DATA, or data.
        settings: SECTION.KEY=VALUE of the base recipe, such as data.train.path=/data/cc12m.
        dry_run: Say what is left to do, how many steps and about how long, and stop.
    """
    from diffclip.sweep import command

    if not recipes:
        raise UserError("no sweep: give a TOML file, such as recipes/sweeps/figure5.toml")
    command(
        recipes,
        out or Path("runs") / "_".join(recipe.stem for recipe in recipes),
        base=base,
        seeds=seeds,
        variants=variants,
        root=root,
        settings=settings,
        dry_run=dry_run,
    )
