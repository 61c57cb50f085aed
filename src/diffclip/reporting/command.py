"""`diffclip report`: from results to tables, figures and one page."""

import os
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from diffclip.errors import UserError
from diffclip.reporting import differences, figures, formats, page
from diffclip.reporting.collect import Collection, collect
from diffclip.reporting.contents import Drawing, Report, build
from diffclip.reporting.families import Group, group
from diffclip.reporting.filled import Table
from diffclip.reporting.scores import Scores

TABLE_FORMS = {"md": formats.to_markdown, "tex": formats.to_latex, "csv": formats.to_csv}
DPI = 300


def report(inputs: Sequence[Path], out: Path, *, labels: Sequence[str] = (), with_paper: bool = False) -> Path:
    """Write OUT/report.html, OUT/tables and OUT/figures; returns the page.

    labels: NAME=PATTERN each. Raises UserError where there is nothing to report, before anything is written.
    """
    collection = collect(inputs)
    groups = group(collection, [_label(text) for text in labels])
    scores = Scores(collection)
    made = build(scores, groups, with_paper=with_paper)
    console = Console()
    for table in _tables(made):
        for suffix, form in TABLE_FORMS.items():
            write(out / "tables" / f"{table.layout.name}.{suffix}", form(table).encode())
    for part in made.parts:
        if part.compared:
            name = f"differences-{page.slug(part.compared[0].group)}"
            write(out / "tables" / f"{name}.csv", differences.to_csv(part.compared).encode())
            write(out / "tables" / f"{name}.md", differences.to_markdown(part.compared).encode())
        for drawing in part.drawings:
            _save(drawing, out / "figures")
    text = page.render(
        made,
        title="CLIP and DiffCLIP: results",
        introduction=_introduction(collection, groups),
        outcome=[line for one in groups if (line := _outcome(made, one))],
        facts=_facts(collection, groups, inputs, out, labels, with_paper),
    )
    write(out / "report.html", text.encode())
    _tell(console, made, out)
    return out / "report.html"


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def _label(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise UserError(f"--label {text}: expected NAME=PATTERN, such as Ours='*_dynamic'")
    return name, pattern


def _tables(made: Report) -> list[Table]:
    shown = [table for part in made.parts for table in part.tables]
    return shown + [drawing.table for part in made.parts for drawing in part.drawings if drawing.table]


def _save(drawing: Drawing, folder: Path) -> None:
    with figures.style(figures.PRINT):
        figure = drawing.draw()
        for suffix in ("png", "pdf"):
            write(folder / f"{drawing.name}.{suffix}", figures.to_bytes(figure, suffix, dpi=DPI))


def _introduction(collection: Collection, groups: Sequence[Group]) -> str:
    models = sum(len(family.members) for one in groups for family in one.families)
    names = ", ".join(one.name for one in groups)
    return f"{len(collection.results)} results of {models} trained models, pretrained on {names}."


def _outcome(made: Report, one: Group) -> str:
    """How the comparisons of a group came out, in a sentence a model; empty where nothing is compared."""
    rows = [row for part in made.parts for row in part.compared if row.group == one.name]
    sentences = []
    for family in one.families[1:]:
        judged = [row.verdict for row in rows if row.model == family.label and row.verdict]
        if judged:
            base = one.baseline.label
            sentences.append(
                f"{family.label} is significantly higher in {judged.count(f'{family.label} higher')} of {len(judged)} "
                f"comparisons, {base} in {judged.count(f'{base} higher')}, and neither in "
                f"{judged.count('not significant')}."
            )
    return f"{one.name}: {' '.join(sentences)}" if sentences else ""


def _facts(
    collection: Collection,
    groups: Sequence[Group],
    inputs: Sequence[Path],
    out: Path,
    labels: Sequence[str],
    with_paper: bool,
) -> dict[str, str]:
    words = ["diffclip", "report", *map(str, inputs), "--out", str(out)]
    for label in labels:
        words += ["--label", label]
    facts = {"command": shlex.join([*words, *(["--with-paper"] if with_paper else [])])}
    for one in groups:
        for family in one.families:
            seeds = ", ".join(str(member.seed) for member in family.members if member.seed is not None)
            models = ", ".join(dict.fromkeys(member.model for member in family.members))
            places = ", ".join(dict.fromkeys(member.pretrained for member in family.members))
            facts[f"{family.label}, {one.name}"] = "; ".join([models, *([f"seeds {seeds}"] if seeds else []), places])
    sizes: dict[str, int] = {}
    for result in collection.results:
        if result.dataset not in sizes:
            examples = collection.examples(result.key)
            if examples is not None:
                sizes[result.dataset] = len(examples.indices)
    if sizes:
        facts["test examples"] = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    facts["results from"] = ", ".join(dict.fromkeys(str(path) for path in collection.origin.values())) or "no file"
    facts["versions"] = ", ".join(f"{name} {version(name)}" for name in ("diffclip", "torch", "matplotlib"))
    return facts


def _tell(console: Console, made: Report, out: Path) -> None:
    tables, drawings = len(_tables(made)), sum(len(part.drawings) for part in made.parts)
    for line in made.missing:
        console.print(f"missing: {line}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{tables} tables in {out / 'tables'}, {drawings} figures in {out / 'figures'}", highlight=False, soft_wrap=True
    )
    console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)
