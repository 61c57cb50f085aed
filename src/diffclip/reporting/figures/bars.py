"""The paper's figures, drawn from tables: bars (Figures 1, 3 and 5) and the radar (Figure 4).

Each function makes a figure in the style that is set around it (`style.style`), 3.4 inches wide, the column of a paper.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from diffclip.reporting.figures import style as figures
from diffclip.reporting.tables.fill import Cell, Row, Table
from diffclip.reporting.tables.formats import gain_text
from diffclip.text import percent

COLUMN = 3.4
"""Inches: the width of a paper's column."""
ACROSS = 3
"""Bar charts side by side."""
CHANCE_OF_PAIRS = 0.25


@dataclass(frozen=True)
class Palette:
    """A colour for each model, the same in every figure of a report."""

    colours: Mapping[str, str]

    @classmethod
    def of(cls, labels: Sequence[str]) -> "Palette":
        """The paper's models have their own colours; others take those that are left, in their order."""
        known = {label: colour for label, colour in figures.MODELS.items() if label in labels}
        left = [colour for colour in (*figures.MODELS.values(), *figures.MORE) if colour not in known.values()]
        others = [label for label in dict.fromkeys(labels) if label not in known]
        return cls(known | {label: left[place % len(left)] for place, label in enumerate(others)})

    def __getitem__(self, label: str) -> str:
        return self.colours[label]


def bars(table: Table, group: str, palette: Palette) -> Figure:
    """One small bar chart a column of the table, with the rows of one group; a missing bar leaves its place empty.

    All have one axis, so that bars of different columns compare.

    Whiskers are one standard deviation over seeds, dots the seeds; a hollow bar beside is the paper's number.
    """
    rows, stated = _rows(table, group)
    columns = table.layout.columns
    across = min(2 if stated and len(rows) > 2 else ACROSS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(COLUMN, 1.25 * down + 0.3), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, place in zip(grid.flat, range(down * across), strict=True):
        if place >= len(columns):
            axes.set_axis_off()
            continue
        _bar_chart(axes, columns[place].name, rows, stated, place, palette)
    drawn = [axes for axes in grid.flat if axes.axison]
    highest = max(axes.get_ylim()[1] for axes in drawn)
    for axes in drawn:
        axes.set_ylim(0, highest)
    handles = [Patch(color=palette[row.label], label=row.label) for row in rows]
    if stated:
        handles.append(Patch(fill=False, edgecolor=matplotlib.rcParams["text.color"], label="the paper's"))
    _legend(figure, handles)
    return figure


def _bar_chart(
    axes: Axes, title: str, rows: Sequence[Row], stated: Mapping[str, Row], place: int, palette: Palette
) -> None:
    beside = any(row.cells[place].mean is not None for row in stated.values())
    width = 0.38 if beside else 0.72
    upright = beside and len(rows) > 2  # narrow bars: their numbers stand
    tops = [0.0]
    for position, row in enumerate(rows):
        cell = row.cells[place]
        if cell.score is not None:
            label = percent(cell.mean)
            if len(rows) <= 2 and not beside and cell.gain is not None:
                label += f"\n{gain_text(cell)}"
            left = position - width / 2 - 0.02 if beside else position
            tops.append(_bar(axes, left, width, cell, palette[row.label]))
            _value(axes, left, tops[-1], label, upright=upright)
        paper = stated[row.label].cells[place].mean if row.label in stated else None
        if paper is not None:
            right = position + width / 2 + 0.02
            axes.bar(right, 100 * paper, width=width, fill=False, edgecolor=palette[row.label], linewidth=0.8)
            _value(axes, right, 100 * paper, percent(paper), upright=upright, style="italic")
            tops.append(100 * paper)
    axes.set_title(title, fontsize=7 if len(title) <= 16 else 5.5, loc="center", pad=3)
    axes.set_xlim(-0.6, max(len(rows), 2) - 0.4)
    axes.set_ylim(0, max(tops) * (1.36 if upright or (len(rows) <= 2 and not beside) else 1.24) or 1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)


def _bar(axes: Axes, place: float, width: float, cell: Cell, colour: str) -> float:
    """A measured bar with its whisker and seeds; returns how high it reaches, in percent."""
    ink = matplotlib.rcParams["text.color"]
    assert cell.score is not None
    height, sd = 100 * cell.score.mean, cell.sd
    axes.bar(place, height, width=width, color=colour)
    top = height
    if sd is not None:
        axes.errorbar(place, height, yerr=100 * sd, color=ink, linewidth=0.8)
        values = [100 * value for value in cell.score.by_seed.values()]
        axes.plot([place] * len(values), values, ".", color=ink, markersize=2.5, alpha=0.6, zorder=3)
        top = max(height + 100 * sd, *values)
    return top


def _value(axes: Axes, place: float, top: float, label: str, *, upright: bool, style: str = "normal") -> None:
    """A number on top of a bar."""
    settings: dict[str, Any] = {"ha": "center", "va": "bottom", "rotation": 90 if upright else 0, "style": style}
    axes.annotate(label, (place, top), (0, 1.5), textcoords="offset points", fontsize=5.5, **settings)


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """In lines of at most five."""
    place = "outside upper center"
    figure.legend(handles=handles, loc=place, ncols=min(len(handles), 5), columnspacing=1.0, handlelength=1.2)


def radar(table: Table, group: str, palette: Palette) -> Figure:
    """Patterns of pairs around a circle, the centre 0; the dashed ring is what guessing scores."""
    rows, _ = _rows(table, group)
    labels = [column.name for column in table.layout.columns][:-1]
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    closed = np.append(angles, angles[:1])
    figure = Figure(figsize=(COLUMN, COLUMN + 0.35), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(np.pi / 2)  # the first pattern on top
    axes.set_theta_direction(-1)
    ink = matplotlib.rcParams["text.color"]
    ring = np.linspace(0, 2 * np.pi, 200)
    axes.plot(ring, np.full(200, 100 * CHANCE_OF_PAIRS), color=ink, linestyle=(0, (3, 3)), linewidth=0.8)
    top = 100 * CHANCE_OF_PAIRS
    for row in rows:
        values = np.array([np.nan if cell.mean is None else 100 * cell.mean for cell in row.cells[:-1]])
        axes.plot(closed, np.append(values, values[:1]), "o-", color=palette[row.label], linewidth=1.5, markersize=3)
        if len(rows) <= 2 and not np.isnan(values).any():
            axes.fill(angles, values, color=palette[row.label], alpha=0.08)
        top = max(top, np.nanmax(values, initial=0.0))
    axes.set_ylim(0, min(100, 10 * np.ceil(top / 10)))
    axes.set_xticks(angles)
    axes.set_xticklabels([])
    step = 10 if axes.get_ylim()[1] <= 50 else 20
    ticks = np.arange(step, axes.get_ylim()[1] + 1, step)
    axes.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks], fontsize=6)
    axes.set_rlabel_position(180 / len(labels))
    axes.spines["polar"].set_alpha(0.4)
    for angle, label, place in zip(angles, labels, range(len(labels)), strict=True):
        text = textwrap.fill(label, 17)
        if len(rows) <= 2:
            text += "\n" + " / ".join(percent(row.cells[place].mean) or "–" for row in rows)
        horizontal = "center" if abs(np.sin(angle)) < 0.2 else "left" if np.sin(angle) > 0 else "right"
        vertical = "bottom" if np.cos(angle) > 0.2 else "top" if np.cos(angle) < -0.2 else "center"
        axes.text(angle, 1.06 * axes.get_ylim()[1], text, ha=horizontal, va=vertical, fontsize=6)
    handles = [
        Line2D([], [], color=palette[row.label], marker="o", markersize=3, label=_radar_label(row)) for row in rows
    ]
    handles.append(Line2D([], [], color=ink, linestyle=(0, (3, 3)), linewidth=0.8, label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(2, len(handles)), columnspacing=1.2)
    return figure


def _radar_label(row: Row) -> str:
    mean = row.cells[-1].mean
    return row.label if mean is None else f"{row.label} (mean {percent(mean)})"


def _rows(table: Table, group: str) -> tuple[list[Row], dict[str, Row]]:
    """The measured rows of a group, and the paper's by label."""
    rows = [row for block in table.rows for row in block if row.group == group]
    return [row for row in rows if not row.paper], {row.label: row for row in rows if row.paper}
