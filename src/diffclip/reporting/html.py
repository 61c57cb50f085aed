"""The report: one HTML file that opens anywhere, offline, on a screen or a phone, light or dark."""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from diffclip.analysis.curves import read_curves
from diffclip.analysis.lambda_ import by_layer
from diffclip.reporting import figures, tables
from diffclip.reporting.figures import AttentionPanel
from diffclip.reporting.tables import Comparison, Row

# Of what is measured during training, one number a task.
DRAWN_METRICS = ("acc1", "image_retrieval_recall@1", "text_retrieval_recall@1", "pair_accuracy")
TOWERS = {"visual": "image tower", "text": "text tower"}


def write_report(
    path: Path,
    *,
    title: str,
    introduction: str,
    comparison: Comparison,
    runs: Mapping[str, Path],
    panels: Sequence[AttentionPanel] = (),
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write the report to `path`, through a temporary file.

    introduction: one sentence on what was compared; what came out is worked out from `comparison`. runs:
    label → run directory, the labels being those of `comparison`, baseline first. panels: relevance maps on
    test images. facts: how it was made (command, seed, minutes, versions, …). notes: sentences shown below
    the table. Raises UserError for a run without metrics.
    """
    sections = [
        _head(title, introduction, comparison),
        _section("Comparison", _table(comparison), *_paragraphs([tables.NOTE, *notes])),
        _section("Training", _grid(_training_figures(runs))),
        _section("λ by layer", *_lambda_content(runs)),
    ]
    if panels:
        sections.append(_section("Where the models look", *_panels(panels, comparison)))
    sections.append(_section("How it was made", _facts(facts)))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{_stylesheet()}</style>\n</head>\n<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


def _stylesheet() -> str:
    colours = dict(zip(("--baseline", "--candidate"), figures.COLOURS, strict=True))
    root = "".join(f"{name}: {value}; " for name, value in colours.items())
    return f":root {{ {root}}}\n" + files("diffclip.reporting").joinpath("report.css").read_text(encoding="utf-8")


def _head(title: str, introduction: str, comparison: Comparison) -> str:
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n"
        f'<p class="outcome">{escape(tables.headline(comparison))}</p>\n</header>\n'
    )


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [f'<p class="note">{escape(text)}</p>\n' for text in texts]


def _table(comparison: Comparison) -> str:
    """One table body a data set and task, so that a phone shows which it is while the numbers scroll."""
    head = tables.columns(comparison)[2:]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in comparison.rows:
        groups.setdefault((row.dataset, row.task), []).append(row)
    bodies = []
    for (dataset, task), rows in groups.items():
        name = f"{escape(dataset)} <small>{escape(tables.TASKS.get(task, task))}</small>"
        lines = [f'<tr class="group"><th colspan="{len(head)}" scope="rowgroup">{name}</th></tr>']
        lines += [_table_row(comparison, row) for row in rows]
        bodies.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>\n")
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table>\n<thead><tr>{titles}</tr></thead>\n{"".join(bodies)}</table></div>\n'


def _table_row(comparison: Comparison, row: Row) -> str:
    metric, *cells = tables.cells_of(comparison, row)[2:]
    kind = ""
    if row.difference is not None and row.difference.significant:
        kind = "candidate" if row.difference.mean > 0 else "baseline"
    data = "".join(f"<td>{escape(cell) or '–'}</td>" for cell in cells)
    return f'<tr class="{kind}"><th scope="row">{escape(metric)}</th>{data}</tr>'


def _training_figures(runs: Mapping[str, Path]) -> list[str]:
    curves = {label: read_curves(run) for label, run in runs.items()}
    names = {"loss": "Loss", "logit_scale": "Logit scale, 1 / temperature"}
    # Evaluations during training are logged as "data set/metric"; the one after the last step alone is no curve.
    for metric in DRAWN_METRICS:
        for name in dict.fromkeys(name for run in curves.values() for name in run if name.endswith(f"/{metric}")):
            if max(len(run[name].steps) for run in curves.values() if name in run) > 1:
                title = tables.METRICS.get(metric, metric.replace("_retrieval_", " "))
                names[name] = f"{name.removesuffix(metric).strip('/')}, {title}"
    shown = []
    for name, title in names.items():
        having = {label: run[name] for label, run in curves.items() if name in run}
        if having:
            shown.append(figures.to_svg(figures.curve_figure(having, title=title, percent="/" in name)))
    return shown


def _lambda_content(runs: Mapping[str, Path]) -> list[str]:
    drawn = [
        figures.to_svg(figures.lambda_figure(curve, title=f"{label}, {TOWERS.get(tower, tower)}"))
        for label, run in runs.items()
        for tower, curve in by_layer(run).items()
    ]
    if not drawn:
        return _paragraphs(["Neither model has differential attention, so there is no λ."])
    text = "How much of the second attention map each layer subtracts. Layer 1 is nearest the input."
    return [*_paragraphs([text]), _grid(drawn)]


def _grid(drawings: Sequence[str]) -> str:
    return '<div class="grid">' + "".join(f"<figure>{svg}</figure>\n" for svg in drawings) + "</div>\n"


def _panels(panels: Sequence[AttentionPanel], comparison: Comparison) -> list[str]:
    text = (
        "What each image patch adds to the score of image and query: relevance through the attention of "
        "all layers, by gradients (Chefer et al. 2021). Each map is scaled to its own range, so compare "
        "places in a map, not brightness between maps. These are examples, not a measurement."
    )
    return [*_paragraphs([text]), *(_panel(panel, comparison) for panel in panels)]


def _panel(panel: AttentionPanel, comparison: Comparison) -> str:
    side = max(panel.image.shape[:2])
    parts = [picture(panel.image, "image", "test image", pixelated=side < 128)]
    for query, baseline, candidate in zip(panel.queries, panel.baseline, panel.candidate, strict=True):
        maps = ((comparison.baseline, "baseline", baseline), (comparison.candidate, "candidate", candidate))
        pictures = "".join(
            picture(figures.overlay(panel.image, relevance), label, f"{label}, query: {query}", kind=kind)
            for label, kind, relevance in maps
        )
        parts.append(f'<div class="query"><p>“{escape(query)}”</p><div class="pair">{pictures}</div></div>\n')
    return f'<article class="panel">\n{"".join(parts)}</article>\n'


def picture(pixels: figures.Pixels, caption: str, alternative: str, *, kind: str = "", pixelated: bool = False) -> str:
    data = base64.b64encode(figures.to_png(pixels)).decode("ascii")
    style = ' class="pixelated"' if pixelated else ""
    return (
        f'<figure class="{kind}"><img{style} src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts.items())
    return f"<dl>\n{lines}</dl>\n"
