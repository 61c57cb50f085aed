"""From results to tables, figures and one page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from diffclip import durable
from diffclip.errors import UserError
from diffclip.reporting.collect import Collection, collect
from diffclip.reporting.families import Group, find_groups
from diffclip.reporting.figures import style as figures
from diffclip.reporting.page import render as page
from diffclip.reporting.page.contents import build
from diffclip.reporting.page.parts import Drawing, Report
from diffclip.reporting.scores import Scores
from diffclip.reporting.tables import comparison, formats
from diffclip.reporting.tables.fill import Table
from diffclip.terminal import Terminal
from diffclip.text import slug

if TYPE_CHECKING:
    from diffclip.reporting.figures.panels import GroupPanels

TABLE_FORMS = {"md": formats.to_markdown, "tex": formats.to_latex, "csv": formats.to_csv}
DPI = 300


@dataclass(frozen=True)
class Options:
    """What a person chooses, as it is given on the command line."""

    labels: tuple[str, ...] = ()
    """NAME=PATTERN each."""
    with_paper: bool = False
    images: tuple[str, ...] = ()
    """IMAGE=QUERY;QUERY each: images to show where the models look in."""
    scenes: int = 2
    """Of how many test scenes, for models that were trained on scenes."""
    figure_files: bool = True
    """Whether figures are written as files too, which takes most of a report's time."""


DEFAULTS = Options()


@dataclass(frozen=True)
class ReportFiles:
    """What a report consists of."""

    page: Path
    tables: int
    figures: int
    missing: tuple[str, ...]
    """What has no number, one line each."""
    notes: tuple[str, ...] = ()
    """Results that were kept apart, or chosen between."""


def report(
    inputs: Sequence[Path],
    out: Path,
    options: Options = DEFAULTS,
    *,
    title: str = "CLIP and DiffCLIP: results",
    introduction: str | None = None,
    facts: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Write OUT/report.html, OUT/tables and, unless the options say otherwise, OUT/figures.

    introduction, facts: what the page says first, and how it was made, instead of what the inputs say. Raises
    UserError where there is nothing to report, or an option is wrong, before anything is written.
    """
    labels = [_label(text) for text in options.labels]
    images = [_image(text) for text in options.images]
    collection = collect(inputs)
    groups = find_groups(collection, labels)
    content = build(Scores(collection), groups, with_paper=options.with_paper)
    panels = _panels(groups, images, options.scenes)
    tables = _tables(content)
    for table in tables:
        for suffix, form in TABLE_FORMS.items():
            durable.write_text(out / "tables" / f"{table.layout.name}.{suffix}", form(table))
    for part in (part for part in content.parts if part.differences):
        durable.write_text(out / "tables" / f"{part.name}.csv", comparison.report_csv(part.differences))
        text = comparison.report_markdown(part.differences, part.introduction)
        durable.write_text(out / "tables" / f"{part.name}.md", text)
    drawings = [*(drawing for part in content.parts for drawing in part.drawings), *_panel_drawings(panels)]
    console, files = Terminal(), drawings if options.figure_files else []
    shown = bool(files) and console.is_terminal
    for drawing in track(files, "Drawing", console=console, transient=True, disable=not shown):
        _save(drawing, out / "figures")
    text = page.render(
        content,
        panels,
        title=title,
        introduction=introduction or _introduction(collection, groups),
        outcome=[text for part in content.parts for text in part.outcome],
        facts=facts or _facts(collection, groups, inputs, out, options),
    )
    durable.write_text(out / "report.html", text)
    return ReportFiles(out / "report.html", len(tables), len(files), content.missing, content.notes)


def _panels(
    groups: Sequence[Group], images: Sequence[tuple[Path, tuple[str, ...]]], scenes: int
) -> dict[str, GroupPanels]:
    """Where the models of each group look; this alone needs the models, so what it imports is imported here."""
    if not images and not scenes:
        return {}
    from diffclip.reporting.figures import panels

    by_group = {group.name: panels.group_panels(group, images, scenes=scenes) for group in groups}
    if images and not any(by_group.values()):
        raise UserError("--image: no group has the weights of two models at hand: give their run directories")
    return {name: of_group for name, of_group in by_group.items() if of_group}


def _panel_drawings(panels: Mapping[str, GroupPanels]) -> list[Drawing]:
    from diffclip.reporting.figures.attention import layer_figure

    drawings = []
    for name, look in panels.items():
        draw = partial(figures.attention_figure, look.panels, baseline=look.baseline, candidate=look.candidate)
        drawings.append(Drawing(f"attention-{slug(name)}", f"Where the models look, {name}", "", "", draw))
        by_layer = partial(layer_figure, look.looks)
        drawings.append(Drawing(f"attention-layers-{slug(name)}", f"Attention by layer, {name}", "", "", by_layer))
    return drawings


def _label(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise UserError(f"--label {text}: expected NAME=PATTERN, such as Ours='*_dynamic'")
    return name, pattern


def _image(text: str) -> tuple[Path, tuple[str, ...]]:
    path, equals, queries = text.rpartition("=")
    wanted = tuple(query.strip() for query in queries.split(";") if query.strip())
    if not (path and equals and wanted):
        raise UserError(f"--image {text}: expected IMAGE=QUERY;QUERY, such as desk.jpg='a mug;a lamp'")
    if not Path(path).is_file():
        raise UserError(f"--image {text}: there is no file {path}")
    return Path(path), wanted


def _tables(content: Report) -> list[Table]:
    tables = [table for part in content.parts for table in part.tables]
    return tables + [drawing.table for part in content.parts for drawing in part.drawings if drawing.table]


def _save(drawing: Drawing, folder: Path) -> None:
    with figures.style(figures.PRINT):
        figure = drawing.draw()
        for suffix in ("png", "pdf"):
            durable.write_bytes(folder / f"{drawing.name}.{suffix}", figures.to_bytes(figure, suffix, dpi=DPI))


def _introduction(collection: Collection, groups: Sequence[Group]) -> str:
    models = sum(len(family.members) for group in groups for family in group.families)
    names = ", ".join(group.name for group in groups)
    return f"{len(collection.results)} results of {models} trained models, pretrained on {names}."


def _facts(
    collection: Collection,
    groups: Sequence[Group],
    inputs: Sequence[Path],
    out: Path,
    options: Options,
) -> dict[str, str]:
    words = ["diffclip", "report", *map(str, inputs), "--out", str(out)]
    for option, texts in (("--label", options.labels), ("--image", options.images)):
        words += [word for text in texts for word in (option, text)]
    words += ["--with-paper"] if options.with_paper else []
    words += ["--scenes", str(options.scenes)] if options.scenes != DEFAULTS.scenes else []
    facts = {"command": shlex.join(words)}
    for group in groups:
        for family in group.families:
            seeds = ", ".join(str(member.seed) for member in family.members if member.seed is not None)
            models = ", ".join(dict.fromkeys(member.model for member in family.members))
            places = ", ".join(dict.fromkeys(member.pretrained for member in family.members))
            facts[f"{family.label}, {group.name}"] = "; ".join([models, *([f"seeds {seeds}"] if seeds else []), places])
    sizes: dict[str, int] = {}
    for result in collection.results:
        if result.dataset not in sizes:
            examples = collection.examples(result.key)
            if (number := result.n or (len(examples.indices) if examples else None)) is not None:
                sizes[result.dataset] = number
    if sizes:
        facts["test examples"] = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    facts["results from"] = ", ".join(dict.fromkeys(str(path) for path in collection.origin.values())) or "no file"
    facts["versions"] = ", ".join(f"{name} {version(name)}" for name in ("diffclip", "torch", "matplotlib"))
    return facts
