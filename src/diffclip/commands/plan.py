"""`diffclip plan`: print what a run would take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from tyro.conf import Positional

from diffclip.terminal import Terminal

if TYPE_CHECKING:
    from diffclip.config import Recipe
    from diffclip.plan.estimate import Assumptions, Plan, Scale
    from diffclip.plan.hardware import Machines

GIB = 2**30


def plan(
    recipe: Positional[Path],
    /,
    *,
    on: str = "8xA100",
    utilisation: float = 0.14,
    price: float | None = None,
    cores: int | None = None,
    images_per_core: float = 454.0,
    caption_tokens: int | None = None,
    scale: bool = False,
    json: bool = False,
) -> None:
    """Say what a recipe would take on some accelerators: time, memory, cost.

    Args:
        recipe: The recipe, a TOML file or the name of one that the package has; needs no data where it states
            data.examples.
        on: How many accelerators of which kind: A100, A100-40GB, H100, H200, V100, RTX4090.
        utilisation: Share of their peak that training reaches; by default about what published runs of CLIP did.
        price: Dollars for an hour of one; by default a list price, whose date and source are printed.
        cores: Processor cores for each, which decode images.
        images_per_core: Images a second that one core prepares.
        caption_tokens: How many tokens the captions of a batch have at most; by default the context length.
        scale: Show ViT-S to ViT-H over CC3M, CC12M and LAION-400M too.
        json: Print JSON instead of tables.
    """
    from diffclip.config import load_recipe
    from diffclip.plan import estimate
    from diffclip.plan.hardware import machines

    assumptions = estimate.Assumptions(
        utilisation=utilisation,
        price=price,
        cores=cores,
        images_per_core=images_per_core,
        caption_tokens=caption_tokens,
    )
    given, where = load_recipe(recipe), machines(on)
    planned = estimate.plan(given, where, assumptions)
    differential = "diffclip" if given.model.resolve_clip("diffclip plan").is_differential else "clip"
    table = estimate.scales(f"{differential}_vit_", where, assumptions) if scale else []
    if json:
        print(_json(planned, table))
    else:
        _print(given, planned, table, assumptions)


def _json(planned: Plan, table: list[Scale]) -> str:
    from diffclip.plan.estimate import published

    content: dict[str, Any] = dataclasses.asdict(planned)
    for name in ("operations", "limit", "step_seconds", "days", "accelerator_days", "dollars"):
        content[name] = getattr(planned, name)
    content["memory"]["fits"] = planned.memory.fits
    content["published"] = [dataclasses.asdict(run) for run in published()]
    if table:
        content["scale"] = [dataclasses.asdict(row) for row in table]
    return json.dumps(content, indent=2)


def _print(recipe: Recipe, planned: Plan, table: list[Scale], assumptions: Assumptions) -> None:
    console = Terminal()
    for block in (
        _summary(recipe, planned, assumptions),
        _work(planned),
        _published(),
        *([_scales(table)] if table else []),
    ):
        console.print(block, highlight=False)
        console.print()


def _summary(recipe: Recipe, planned: Plan, assumptions: Assumptions) -> Table:
    from diffclip.plan.hardware import price_source

    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    where, memory = planned.machines, planned.memory
    rows.add_row("model", f"{recipe.model.name}, {planned.parameters:,} parameters")
    rows.add_row("run", f"{planned.steps:,} steps of {planned.batch_size:,} pairs, {planned.examples:,} examples")
    rows.add_row("on", f"{where.count} × {where.kind.title}")
    again = f", and {planned.again:.3g} again" if planned.again else ""
    rows.add_row(
        "work", f"{planned.operations:.3g} operations a step{again}, {planned.operations * planned.steps:.3g} in all"
    )
    rows.add_row("memory, weights and optimizer", f"{memory.state / GIB:.1f} GiB on each")
    rows.add_row(
        "memory, activations", f"{memory.activations / GIB:.1f} GiB on each, {memory.micro_batch:,} images at a time"
    )
    rows.add_row("of", f"{memory.capacity / GIB:.1f} GiB: {_fit(planned)}")
    for what, seconds in planned.seconds.items():
        limit = ", which is the limit" if what == planned.limit else ""
        rows.add_row(f"a step's {what}", f"{seconds:.3g} s{_basis(what, where, assumptions)}{limit}")
    rows.add_row("time", f"{_duration(planned.days)}; {_few(planned.accelerator_days)} days of one {where.kind.name}")
    if planned.dollars is None:
        rows.add_row("cost", f"no price of {where.kind.name} is known: give --price, dollars an hour")
    else:
        basis = "as given" if assumptions.price is not None else price_source()
        rows.add_row("cost", f"${planned.dollars:,.0f} at ${planned.dollars_an_hour:.2f} an hour each ({basis})")
    return rows


def _fit(planned: Plan) -> str:
    memory = planned.memory
    if memory.fits:
        return "fits"
    if memory.fitting:
        return f"does not fit; training.micro_batch = {memory.fitting} would, for a third more work"
    return "does not fit, not even with one image at a time"


def _basis(what: str, where: Machines, assumptions: Assumptions) -> str:
    if what == "compute":
        return f" at {assumptions.utilisation:.0%} of the peak"
    if what == "loading":
        cores = where.count * (assumptions.cores or where.kind.cores)
        return f" with {cores:,} cores at {assumptions.images_per_core:.0f} images a second"
    if what == "network":
        return f" at {where.slowest_link / 1e9:.0f} GB/s, beside the backward pass" if where.count > 1 else ""
    return f" at {where.kind.bandwidth / 1e9:,.0f} GB/s, at least"


def _duration(days: float) -> str:
    for unit, length in (("days", 1), ("hours", 24)):
        if days * length >= 2:
            return f"{_few(days * length)} {unit}"
    return f"{1440 * days:.3g} minutes"


def _few(number: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _work(planned: Plan) -> Table:
    table = Table("operations a step, forward and backward", box=None, padding=(0, 2, 0, 0))
    table.add_column("", justify="right")
    table.add_column("share", justify="right")
    for part, count in planned.work.items():
        table.add_row(part, f"{count:.3g}", f"{count / planned.operations:.1%}")
    return table


def _published() -> Table:
    from diffclip.plan.estimate import published

    table = Table("what others needed", box=None, padding=(0, 2, 0, 0))
    table.add_column("days of one", justify="right")
    table.add_column("share of its peak", justify="right")
    table.add_column("source")
    for run in published():
        table.add_row(run.name, f"{run.days:,g} {run.on}", f"{run.utilisation:.1%}", run.source)
    return table


def _scales(rows: list[Scale]) -> Table:
    from diffclip.plan.estimate import SCALES

    table = Table("by size", box=None, padding=(0, 2, 0, 0))
    table.add_column("parameters", justify="right")
    table.add_column("GFLOPs a pair", justify="right")
    for name, (pairs, epochs) in SCALES.items():
        table.add_column(f"{name}: {pairs / 1e6:g} M × {epochs}", justify="right")
    for row in rows:
        cells = [
            f"{_few(days)} days" + (f", ${row.dollars[name]:,.0f}" if row.dollars[name] is not None else "")
            for name, days in row.days.items()
        ]
        table.add_row(row.preset, f"{row.parameters / 1e6:.0f} M", f"{row.operations / 1e9:.1f}", *cells)
    return table
