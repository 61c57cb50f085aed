"""The parts of a report that say what came out: a sweep's outcomes, differences, and relevance apart from them."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from diffclip.reporting.compare import compare_variants
from diffclip.reporting.design import Study
from diffclip.reporting.families import Group
from diffclip.reporting.figures.bars import Palette
from diffclip.reporting.figures.outcomes import outcome
from diffclip.reporting.page.parts import Drawing, Part
from diffclip.reporting.rows import Row
from diffclip.reporting.tables.fill import Table
from diffclip.reporting.tables.layouts import GROUNDING
from diffclip.reporting.verdicts import RELEVANCE, by_seed, judge, note, summary
from diffclip.text import slug


def study_parts(path: Path, study: Study, palette: Palette) -> Iterator[Part]:
    """What a sweep declared, the primary outcome with every seed drawn, the other outcomes. path: of its results."""
    rows = compare_variants(path, study)
    sweep = path.parent.name
    measured = [row for row in rows if row.difference]
    if not measured:
        return
    asked = study.design.primary if study.design else rows[0].group
    margin = study.design.margin if study.design else None
    first = [row for row in rows if row.group == asked]
    colours = Palette.of([*palette.colours, *study.weights])
    lines = tuple(by_seed(first))
    drawing = Drawing(
        f"outcome-{slug(sweep)}",
        f"{asked}, every seed",
        "Dots: seeds; lines join the models of one seed. Right: differences from "
        f"{study.baseline}, with 95 % intervals." + (f" Band: ± {margin:g} points." if margin else ""),
        f"{asked} of each variant, seed by seed. {'; '.join(lines)}.",
        partial(outcome, first, colours, margin),
    )
    ordered = sorted(measured, key=lambda row: ("primary", "secondary", "").index(row.role))
    drawings = (drawing,) if any(row in measured for row in first) else ()
    yield Part(
        f"What was asked, {sweep}",
        note(rows, study),
        drawings=drawings,
        differences=tuple(ordered),
        name=f"outcomes-{slug(sweep)}",
        seeds=tuple(by_seed([*first, *(row for row in rows if row.group != asked)])),
        outcome=tuple(summary(rows, study)),
    )


def difference_parts(
    rows: Sequence[Row], group: Group, relevance: Sequence[Table | None], judged: bool
) -> Iterator[Part]:
    """Every difference of a group. Where the models look comes apart, relevance beside occlusion, with its warning.

    relevance: tables of where the models look. judged: not where a sweep among the inputs declared what is.
    """
    rows = judge(rows) if judged else rows
    ordinary = tuple(row for row in rows if row.task != GROUNDING)
    looks = tuple(row for row in rows if row.task == GROUNDING)
    if ordinary:
        text = note(ordinary)
        said = tuple(summary(ordinary)) if judged else ()
        text = text if judged else f"Not judged: the sweep has declared what is. {text}"
        seeds = tuple(by_seed(ordinary)) if any(len(family.members) > 1 for family in group.families) else ()
        name = f"differences-{slug(group.name)}"
        yield Part(f"Differences, {group.name}", text, differences=ordinary, name=name, seeds=seeds, outcome=said)
    tables = tuple(table for table in relevance if table)
    if looks or tables:
        text = f"{RELEVANCE} Occlusion asks nothing of the attention. {note(looks)}".replace(f" {RELEVANCE}", "")
        name = f"relevance-{slug(group.name)}"
        yield Part(f"Relevance and occlusion, {group.name}", text, tables, differences=looks, name=name)
