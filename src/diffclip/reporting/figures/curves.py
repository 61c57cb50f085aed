"""Figures over a quantity: accuracy over ε and severity, correlation and λ over layers, λ and loss over training.

Lines are means over seeds, bands one standard deviation.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from diffclip.analysis.curves import Curve
from diffclip.reporting.families import Family
from diffclip.reporting.figures import style as figures
from diffclip.reporting.figures.bars import COLUMN, Palette
from diffclip.reporting.figures.points import TOWERS, Panels, Points, lambda_curves

STYLES = {"clean": "-", "cluttered": (0, (4, 1.5)), "noisy": (0, (1, 1.2))}
MARKS = {"clean": "o", "cluttered": "s", "noisy": "^"}


def attacks(panels: Panels, palette: Palette) -> Figure:
    """`points.attacks`, one panel an attack."""
    figure, grid = _panels(list(panels), share=True)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        places = sorted({x for points in lines.values() for x in points})
        smallest = next((x for x in places if x > 0), 1.0)
        for label, points in lines.items():
            _line(axes, points, palette[label])
        axes.set_xscale("symlog", base=2, linthresh=smallest, linscale=1.0)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".removeprefix("0") if x else "0"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=7)
        axes.set_xlabel("ε (grey levels)")
        _percent_axis(axes)
    grid[0].set_ylabel("top-1 accuracy")
    _legend(figure, _drawn(panels), palette)
    return figure


def severities(panels: Panels, palette: Palette) -> Figure:
    """`points.severities`."""
    (lines,) = panels.values()
    figure, (axes,) = _panels([""])
    for label, points in lines.items():
        _line(axes, points, palette[label])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("severity of the corruption (0: clean)")
    axes.set_ylabel("top-1 accuracy")
    _percent_axis(axes)
    _legend(figure, list(lines), palette)
    return figure


def noise(panels: Panels, palette: Palette) -> Figure:
    """`points.noise`, one panel a family."""
    figure, grid = _panels(list(panels), share=True)
    for axes, (label, lines) in zip(grid, panels.items(), strict=True):
        for condition, points in lines.items():
            _line(axes, points, palette[label], style=STYLES[condition], marker=MARKS[condition])
        axes.set_title(label, fontsize=7)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    grid[0].set_ylabel("correlation of A1 and A2")
    ink = matplotlib.rcParams["text.color"]
    handles = [
        Line2D([], [], color=ink, linestyle=style, marker=MARKS[condition], markersize=3, label=condition)
        for condition, style in STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=2.4)
    return figure


def lambda_by_layer(families: Sequence[Family], palette: Palette) -> Figure:
    """λ of each layer at the end of training, one panel a tower; every seed a dot, the mean a line."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for family in families:
        for tower, curves in lambda_curves(family).items():
            panels.setdefault(tower, {})[family.label] = curves
    figure, grid = _panels(list(panels), share=True)
    for axes, (tower, lines) in zip(grid, panels.items(), strict=True):
        for label, curves in lines.items():
            last = np.stack([curve.values[-1] for curve in curves])  # (seeds, layers)
            layers = np.arange(1, last.shape[1] + 1)
            axes.plot(layers, last.mean(0), "-", color=palette[label], linewidth=1.5)
            for row in last:
                axes.plot(layers, row, ".", color=palette[label], markersize=4, alpha=0.6)
        axes.set_title(TOWERS.get(tower, tower), fontsize=7)
        axes.set_xlabel("layer (1 at the input)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    grid[0].set_ylabel("λ at the end of training")
    _legend(figure, _drawn(panels), palette)
    return figure


def lambda_over_time(family: Family) -> Figure:
    """λ of each layer over the steps of training, one panel a tower: the mean over the seeds, and their range."""
    towers = lambda_curves(family)
    figure, grid = _panels(list(towers), share=True)
    most = max(curves[0].values.shape[1] for curves in towers.values())
    for axes, (tower, curves) in zip(grid, towers.items(), strict=True):
        shortest = min(curves, key=lambda curve: len(curve.steps))
        same = [curve for curve in curves if np.array_equal(curve.steps, shortest.steps)]
        shown = [figures.thin(curve) for curve in same]
        values = np.stack([curve.values for curve in shown])  # (seeds, T, layers)
        for layer in range(values.shape[2]):
            colour = figures.LAYERS(layer / max(1, most - 1))
            axes.plot(shown[0].steps, values[:, :, layer].mean(0), color=colour, linewidth=1.3, label=str(layer + 1))
            if len(same) > 1:
                low, high = values[:, :, layer].min(0), values[:, :, layer].max(0)
                axes.fill_between(shown[0].steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(TOWERS.get(tower, tower), fontsize=7)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    grid[0].set_ylabel("λ")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, names, title="layer", loc="outside right center", ncols=1 + len(names) // 13, handlelength=1.2
    )
    return figure


def training_curves(curves: Mapping[str, Sequence[Curve]], palette: Palette, *, ylabel: str) -> Figure:
    """One number over the steps of training, a line a family, the range over its seeds as a band."""
    figure, (axes,) = _panels([""])
    for label, by_seed in curves.items():
        shortest = min(by_seed, key=lambda curve: len(curve.steps))
        same = [figures.thin(curve) for curve in by_seed if np.array_equal(curve.steps, shortest.steps)]
        values = np.stack([curve.values for curve in same])
        axes.plot(same[0].steps, values.mean(0), color=palette[label], linewidth=1.3)
        if len(same) > 1:
            axes.fill_between(
                same[0].steps, values.min(0), values.max(0), color=palette[label], alpha=0.18, linewidth=0
            )
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    _legend(figure, list(curves), palette)
    return figure


def _panels(titles: Sequence[str], *, share: bool = False) -> tuple[Figure, list[Axes]]:
    across = min(len(titles), 2)
    down = -(-len(titles) // across)
    figure = Figure(figsize=(COLUMN, 1.75 * down + 0.35), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, sharey=share).flat)
    for axes in grid[len(titles) :]:
        axes.set_axis_off()
    return figure, grid[: len(titles)]


def _line(axes: Axes, points: Points, colour: str, *, style: object = "-", marker: str = "o") -> None:
    places = sorted(points)
    means = np.array([points[x].mean for x in places])
    spreads = np.array([points[x].sd or 0.0 for x in places])
    axes.plot(places, means, color=colour, linestyle=style, marker=marker, markersize=3, linewidth=1.4)
    if spreads.any():
        axes.fill_between(places, means - spreads, means + spreads, color=colour, alpha=0.15, linewidth=0)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(figure: Figure, labels: Sequence[str], palette: Palette) -> None:
    handles = [Line2D([], [], color=palette[label], linewidth=1.6, label=label) for label in labels]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2, handlelength=1.4)


def _drawn(panels: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The lines of all panels, each once."""
    return list(dict.fromkeys(label for lines in panels.values() for label in lines))
