"""The table of a sweep: each variant on each group of tasks, over seeds, and how it differs from the baseline."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from diffclip.evaluation import results
from diffclip.evaluation.results import Result
from diffclip.evaluation.stats import seeds
from diffclip.evaluation.stats.seeds import NOTE, Difference, Metric, Spread
from diffclip.reporting.pair import percent

Measured = dict[int, dict[Metric, Result]]


@dataclass(frozen=True)
class Row:
    """One variant on one group, as fractions; None where nothing was measured."""

    group: str
    variant: str
    spread: Spread | None
    difference: Difference | None
    """From the baseline; None for the baseline itself, and where the two have no seed in common."""
    missing: tuple[int, ...]
    """Seeds that have some results, but not all of this group."""


@dataclass(frozen=True)
class SweepTable:
    """Rows by group and then by variant."""

    baseline: str
    rows: tuple[Row, ...]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row.group for row in self.rows))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(row.variant for row in self.rows))


def tabulate(
    path: Path,
    variants: Mapping[str, str],
    groups: Mapping[str, Sequence[Metric]],
    baseline: str,
    *,
    resamples: int = 10_000,
) -> SweepTable:
    """Read the results of a sweep from `path`, a results.jsonl.

    variants: name → what results call its weights, with `*` for the seed, as `seeds.split_seed` gives it. A group is
    the mean over its metrics, and a seed counts where it has all of them.
    """
    measured: dict[str, Measured] = {name: {} for name in variants}
    names = {weights: name for name, weights in variants.items()}
    for (_, weights), by_seed in seeds.by_seed(results.read(path)).items():
        if weights in names:
            measured[names[weights]] |= by_seed
    rows = []
    for group, metrics in groups.items():
        for name, found in measured.items():
            means = {
                seed: float(np.mean([of_seed[m].metrics[m[2]] for m in metrics]))
                for seed, of_seed in sorted(found.items())
                if all(m in of_seed for m in metrics)
            }
            spread = seeds.spread(list(means.values())) if means else None
            difference = None
            if name != baseline:
                compared = seeds.compare(path, measured[baseline], found, {group: metrics}, resamples=resamples)
                difference = compared.get(group)
            rows.append(Row(group, name, spread, difference, tuple(sorted(found.keys() - means.keys()))))
    return SweepTable(baseline, tuple(rows))


def score(spread: Spread | None) -> str:
    """ "81.3 ± 0.4", in percent; without the deviation for one seed, and empty for none."""
    if spread is None:
        return ""
    return percent(spread.mean) + (f" ± {percent(spread.sd)}" if spread.sd is not None else "")


def interval(difference: Difference | None) -> str:
    """ "−1.2 to +0.4", in percentage points; empty for one seed, whose interval leaves out what a seed does."""
    if difference is None or difference.t is None:
        return ""
    low, high = difference.interval.low, difference.interval.high
    return f"{percent(low, signed=True)} to {percent(high, signed=True)}"


def cells_of(row: Row) -> tuple[str, ...]:
    """Mean ± sd, number of seeds, difference, interval and verdict as text."""
    difference = row.difference
    return (
        score(row.spread),
        str(row.spread.count) if row.spread else "",
        percent(difference.mean if difference else None, signed=True),
        interval(difference),
        difference.verdict if difference else "",
    )


def to_rich(table: SweepTable) -> Table:
    """For a terminal of 80 columns; a head line for each group."""
    caption = f"{_seeds(table)} {note(table)}"
    shown = Table(caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("variant")
    for name in ("mean ± sd", "diff.", "95 % interval", "verdict"):
        shown.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for group in table.groups:
        shown.add_section()
        shown.add_row(Text(group, style="bold"))
        for row in (row for row in table.rows if row.group == group):
            mean, _, *others = cells_of(row)
            sure = row.difference is not None and row.difference.verdict in ("higher", "lower")
            variant = Padding(Text(row.variant), (0, 0, 0, 2))
            shown.add_row(variant, *map(Text, (mean, *others)), style="bold" if sure else "")
    return shown


def _seeds(table: SweepTable) -> str:
    counts = sorted({row.spread.count for row in table.rows if row.spread})
    if not counts:
        return "Nothing is measured yet."
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'' if number == '1' else 's'}."


def note(table: SweepTable) -> str:
    """What the numbers are."""
    return f"In percent. Differences from {table.baseline}. {NOTE}"


def to_markdown(table: SweepTable) -> str:
    """Two tables, of all variants by group and of the differences, and the note."""
    by_place = {(row.group, row.variant): row for row in table.rows}
    lines = [_line("", *table.groups), _line("---", *["---:"] * len(table.groups))]
    lines += [_line(name, *(score(by_place[group, name].spread) for group in table.groups)) for name in table.variants]
    head = ("group", "variant", "mean ± sd", "seeds", f"difference from {table.baseline}", "95 % interval", "verdict")
    lines += ["", _line(*head), _line("---", "---", *["---:"] * 4, "---")]
    lines += [_line(row.group, row.variant, *cells_of(row)) for row in table.rows]
    return "\n".join([*lines, "", note(table), ""])


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


def to_csv(table: SweepTable) -> str:
    """All numbers, as fractions and unrounded; the interval of the verdict and the two that it holds."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    head = "group variant seeds mean sd difference difference_sd low high bootstrap_low bootstrap_high t_low t_high"
    out.writerow([*head.split(), "verdict"])
    for row in table.rows:
        spread, difference = row.spread, row.difference
        numbers: list[float | str | None] = [row.group, row.variant]
        numbers += [spread.count, spread.mean, spread.sd] if spread else [None] * 3
        if difference is None:
            numbers += [None] * 9
        else:
            numbers += [difference.mean, difference.sd]
            for one in (difference.interval, difference.bootstrap, difference.t):
                numbers += [one.low, one.high] if one else [None, None]
            numbers.append(difference.verdict)
        out.writerow("" if value is None else value for value in numbers)
    return text.getvalue()
