"""The report as one HTML page that opens anywhere, offline: a screen or a phone, light or dark, or on paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING

from diffclip.reporting.compare import Row as Comparison
from diffclip.reporting.compare import interval_text, score_text
from diffclip.reporting.figures import style as figures
from diffclip.reporting.page.contents import Drawing, Part, Report
from diffclip.reporting.tables.fill import Cell, Row, Table
from diffclip.reporting.tables.formats import model_text
from diffclip.reporting.tables.layouts import slug
from diffclip.reporting.titles import metric_title, task_title
from diffclip.text import percent

if TYPE_CHECKING:  # panels imports models, which a report without them does not need
    from diffclip.reporting.figures.panels import GroupPanels

MISSING = "What is missing"
MADE = "How it was made"
# Matplotlib numbers what it draws, alike in every figure; nothing points at these names.
UNUSED = re.compile(r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|\w+Collection)_\d+"')
MAPS = (
    "What each image patch adds to the score of image and query: relevance through the attention of all layers, by "
    "gradients (Chefer et al. 2021). Each map is scaled to its own range, so compare places in a map, not brightness "
    "between maps. These are examples, not a measurement."
)


def render(
    report: Report,
    panels: Mapping[str, GroupPanels],
    *,
    title: str,
    introduction: str,
    outcome: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """The page. panels: by group. outcome: what came out, in sentences. facts: how the report was made."""
    sections = [(part.title, _part(part)) for part in report.parts]
    sections += [(f"Where the models look, {group}", _panels(found)) for group, found in panels.items()]
    sections.append((MISSING, _missing(report.missing)))
    sections.append((MADE, _facts(facts)))
    links = "".join(f'<li><a href="#{slug(name)}">{escape(name)}</a></li>' for name, _ in sections)
    body = "".join(
        f'<section id="{slug(name)}" aria-labelledby="{slug(name)}-title">\n'
        f'<h2 id="{slug(name)}-title">{escape(name)}</h2>\n{content}</section>\n'
        for name, content in sections
    )
    came_out = "".join(f'<p class="outcome">{escape(sentence)}</p>\n' for sentence in outcome)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{_stylesheet()}</style>\n</head>\n<body>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f"<main>\n<header>\n<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n{came_out}</header>\n"
        f"{body}</main>\n</body>\n</html>\n"
    )


def _stylesheet() -> str:
    return files("diffclip.reporting.page").joinpath("page.css").read_text(encoding="utf-8")


def _part(part: Part) -> str:
    text = f'<p class="note">{escape(part.introduction)}</p>\n' if part.introduction else ""
    tables = "".join(_table(table) for table in part.tables)
    drawings = "".join(map(_drawing, part.drawings))
    grid = f'<div class="grid">{drawings}</div>\n' if drawings else ""
    return text + tables + grid + (_compared(part.differences) if part.differences else "")


def _table(table: Table) -> str:
    layout = table.layout
    spans = [(over, len(list(columns))) for over, columns in groupby(layout.columns, key=lambda c: c.over)]
    head = ""
    if any(over for over, _ in spans):
        cells = "".join(f'<th colspan="{n}" scope="colgroup">{escape(over)}</th>' for over, n in spans)
        head = f'<tr class="over"><td colspan="2"></td>{cells}</tr>'
    labels = "".join(f'<th scope="col">{escape(column.label)}</th>' for column in layout.columns)
    head += f'<tr><th scope="col">Pretraining</th><th scope="col">Model</th>{labels}</tr>'
    bodies = []
    for block, rows in zip(layout.blocks, table.rows, strict=True):
        if not rows:
            continue
        title, rest = escape(block.title), len(layout.columns)
        name = f'<tr class="block"><th colspan="2" scope="rowgroup">{title}</th><td colspan="{rest}"></td></tr>'
        lines = [name] if block.title else []
        for place, row in enumerate(rows):
            first = place == 0 or rows[place - 1].group != row.group
            lines.append(_row(row, first=first))
        bodies.append("<tbody>" + "\n".join(lines) + "</tbody>\n")
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(layout.title)}"><table class="paper">\n'
        f"<caption>{escape(layout.title)}</caption>\n"
        f"<thead>{head}</thead>\n{''.join(bodies)}</table></div>\n{notes}"
    )


def _row(row: Row, *, first: bool) -> str:
    kind = " ".join(name for name, holds in (("first", first), ("stated", row.paper)) if holds)
    group = escape(row.group) if first else f'<span class="again">{escape(row.group)}</span>'
    cells = "".join(map(_cell, row.cells))
    return f'<tr class="{kind}"><td>{group}</td><th scope="row">{escape(model_text(row))}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    if cell.mean is None and cell.gain is None:
        return '<td class="empty"><span class="unseen">not measured</span></td>'
    value = escape(percent(cell.mean))
    if cell.best:
        value = f"<strong>{value}</strong>"
    if cell.sd is not None:
        value += f" <small>± {escape(percent(cell.sd))}</small>"
    if cell.gain is not None:
        sure = cell.difference.significant if cell.difference else None
        kind = "" if not sure else "up" if cell.gain > 0 else "down"
        mark = ' <abbr title="not significant">ns</abbr>' if sure is False else ""
        value += f' <span class="gain {kind}">({escape(percent(cell.gain, signed=True))}{mark})</span>'
    return f"<td>{value}</td>"


def _drawing(drawing: Drawing) -> str:
    with figures.style(figures.SCREEN):
        svg = figures.to_svg(drawing.draw())
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PolyCollection)_\d+"', "", svg
    )
    named = svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.alternative)}"', 1)
    note = f"<figcaption>{escape(drawing.caption)}</figcaption>\n" if drawing.caption else ""
    numbers = f"<details><summary>Numbers</summary>{_table(drawing.table)}</details>\n" if drawing.table else ""
    return f"<figure>\n<h3>{escape(drawing.title)}</h3>\n{named}\n{note}{numbers}</figure>\n"


def _compared(rows: Sequence[Comparison]) -> str:
    head = ("", "model", rows[0].baseline, "model's", "difference", "95 % interval", "verdict", "chance")
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    bodies = []
    for (dataset, task), found in groupby(rows, key=lambda row: (row.dataset, row.task)):
        name = f"{escape(dataset)} <small>{escape(task_title(task))}</small>"
        lines = [f'<tr class="block"><th scope="rowgroup" colspan="2">{name}</th><td colspan="6"></td></tr>']
        last = ""
        for row in found:
            metric = metric_title(row.metric)
            shown = f'<span class="again">{escape(metric)}</span>' if metric == last else escape(metric)
            kind = "" if not row.difference.significant else "up" if row.difference.mean > 0 else "down"
            cells = [
                row.model,
                score_text(row.baseline_score),
                score_text(row.score),
                percent(row.difference.mean, signed=True),
                interval_text(row.difference),
                row.verdict,
                percent(row.chance),
            ]
            data = "".join(f"<td>{escape(cell) or '–'}</td>" for cell in cells)
            lines.append(f'<tr class="{kind}"><th scope="row">{shown}</th>{data}</tr>')
            last = metric
        bodies.append("<tbody>" + "\n".join(lines) + "</tbody>\n")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences"><table class="differences">\n'
        f"<thead><tr>{titles}</tr></thead>\n{''.join(bodies)}</table></div>\n"
    )


def _panels(found: GroupPanels) -> str:
    labels = (found.baseline, found.candidate)
    parts = [f'<p class="note">{escape(MAPS)}</p>\n']
    for panel in found.panels:
        small = max(panel.image.shape[:2]) < 128
        cells = [_picture(panel.image, "image", "the image", pixelated=small)]
        for query, *maps in zip(panel.queries, panel.baseline, panel.candidate, strict=True):
            shown = "".join(
                _picture(figures.overlay(panel.image, relevance), label, f"{label}, query: {query}")
                for label, relevance in zip(labels, maps, strict=True)
            )
            cells.append(f'<div class="query"><p>“{escape(query)}”</p><div class="pair">{shown}</div></div>\n')
        parts.append(f'<article class="panel">\n{"".join(cells)}</article>\n')
    return "".join(parts)


def _picture(pixels: figures.Pixels, caption: str, alternative: str, *, kind: str = "", pixelated: bool = False) -> str:
    data = base64.b64encode(figures.to_png(pixels)).decode("ascii")
    style = ' class="pixelated"' if pixelated else ""
    return (
        f'<figure class="{kind}"><img{style} src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _missing(missing: Sequence[str]) -> str:
    if not missing:
        return "<p>Nothing: every cell has a number.</p>\n"
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in missing)
    text = "These cells are empty because there is no result for them. Nothing is filled in from elsewhere."
    return f"<p>{text}</p>\n<ul>\n{lines}</ul>\n"


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts.items())
    return f"<dl>\n{lines}</dl>\n"
