"""The report as one HTML page that opens anywhere, offline: a screen or a phone, light or dark, or on paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from diffclip.evaluation.task import metric_title, title_of_task
from diffclip.reporting.figures import style as figures
from diffclip.reporting.figures.contrast import by_variable, variables
from diffclip.reporting.page.parts import Drawing, Report
from diffclip.reporting.tables.formats import model_text
from diffclip.reporting.verdicts import (
    count_text,
    decided,
    difference_text,
    interval_text,
    p_text,
    score_text,
    verdict_text,
)
from diffclip.text import percent, printable_lines, slug

if TYPE_CHECKING:  # panels imports models, which a report without them does not need
    from diffclip.reporting.figures.panels import GroupPanels

WARNED = "Warnings of training"
MISSING = "What is missing"
MADE = "How it was made"
# Matplotlib numbers what it draws, alike in every figure; nothing points at these names.
UNUSED = re.compile(r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PolyCollection)_\d+"')
COLOURS = "/* colours of the figures */"
LAYERS_DPI = 120
SMALL = 128
"""Pixels: an image whose edges are all shorter is shown as pixels."""


def _plain(value: Any) -> Any:
    return printable_lines(value) if type(value) is str else value  # what is marked up already is ours


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
    looks = {f"Where the models look, {group}": _looks(of_group) for group, of_group in panels.items()}
    layers = {title: _layers(of_group) for title, of_group in zip(looks, panels.values(), strict=True)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True, finalize=_plain)
    for function in (
        count_text, decided, difference_text, interval_text, metric_title, model_text, p_text, percent, score_text,
        slug, title_of_task, verdict_text, zip,
    ):  # fmt: skip
        environment.globals[function.__name__] = function
    environment.globals |= {"runs": _runs, "svg": _svg}
    page = environment.from_string(_file("page.html.j2")).render(
        report=report,
        looks=looks,
        layers=layers,
        titles=[*(part.title for part in report.parts), *looks, *([WARNED] if report.warnings else []), MISSING, MADE],
        warned=WARNED,
        missing=MISSING,
        made=MADE,
        title=title,
        introduction=introduction,
        outcome=outcome,
        facts=facts,
        style=Markup(_file("page.css")),
    )
    return page.replace(COLOURS, variables(page), 1)


def _file(name: str) -> str:
    return files("diffclip.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _runs(items: Iterable[Any], *names: str) -> list[tuple[Any, list[Any]]]:
    """Items that follow each other and have the same attributes, with these."""
    return [(key, list(run)) for key, run in groupby(items, attrgetter(*names))]


def _svg(drawing: Drawing) -> Markup:
    """The drawing as SVG, after its "<svg"."""
    with figures.style(figures.SCREEN):
        svg = figures.to_svg(drawing.draw())
    return Markup(by_variable(UNUSED.sub("", svg)).removeprefix("<svg"))


def _looks(panels: GroupPanels) -> list[dict[str, Any]]:
    """Images, and for each query both models' maps over them, as PNG files in base64."""
    labels = (panels.baseline, panels.candidate)
    return [
        {
            "image": _png(panel.image),
            "small": max(panel.image.shape[:2]) < SMALL,
            "queries": [
                (query, [(label, _png(figures.overlay(panel.image, m))) for label, m in zip(labels, maps, strict=True)])
                for query, *maps in zip(panel.queries, panel.baseline, panel.candidate, strict=True)
            ],
        }
        for panel in panels.panels
    ]


def _layers(panels: GroupPanels) -> tuple[str, str]:
    """The maps of each layer on the first image, as a PNG file in base64; and λ, which it writes below them."""
    from diffclip.reporting.figures.attention import layer_figure

    lambdas = {
        label: [f"{layer.lam:.2f}" for layer in look.class_token if layer.lam is not None]
        for label, look in panels.looks.items()
    }
    words = "; ".join(
        f"{label}'s λ from the input on: {', '.join(values)}" for label, values in lambdas.items() if values
    )
    png = figures.to_bytes(layer_figure(panels.looks), "png", dpi=LAYERS_DPI)
    return base64.b64encode(png).decode("ascii"), f" {words}." if words else ""


def _png(pixels: figures.Pixels) -> str:
    return base64.b64encode(figures.to_png(pixels)).decode("ascii")
