"""Figures of what heads do, by layer: every head a dot, their mean a line; and what each can and cannot show."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffclip.analysis.heads import HIGH, LayerNumbers
from diffclip.reporting.figures.bars import COLUMN, Palette
from diffclip.reporting.figures.style import INK

Models = Mapping[str, Sequence[LayerNumbers]]

TEXTS = {
    "rank": (
        "Effective rank of an image's contexts by head, before any norm. It shows whether the tokens of a head "
        "hold one thing or many; what all tokens have in common counts as one. It does not show whether they "
        "are useful: noise has a high rank. A head of V1 has values twice as wide, and there are half as many."
    ),
    "size": (
        "Root mean square of the contexts by head, before any norm. It shows what the subtraction leaves, as "
        "far as values are alike in size. Values and the projection after them differ between models, and a "
        "norm takes the size away: a small one is then no weak head."
    ),
    "sinks": (
        f"Share of a patch's weight on the class token (dots, line) and on patches above {HIGH:g} medians of "
        "the residual stream's norm (crosses, broken line). It shows where heads put weight that they have no "
        "use for, in A1, A2 and what is left. Of what is left it counts sizes, whatever their sign. It does "
        "not show that a token is unused: a class token that is read, and a sink, look alike. The grey line is "
        "the share of one token in an even map."
    ),
    "gradient": (
        "Norm of the gradient of the pairs' cosines before the heads' norm over that after it, with the "
        "factor 1 − λ_init. Above 1 the norm magnifies what reaches queries, keys and values. It is of a "
        "trained model on some images in evaluation, not of training; Adam takes a constant factor away "
        "again. A model without a norm is 1, and not drawn."
    ),
}


def rank(models: Models, palette: Palette) -> Figure:
    """TEXTS["rank"]."""
    figure, axes = _one("effective rank")
    for label, layers in models.items():
        _heads(axes, [layer.rank.numpy() for layer in layers], palette[label])
    axes.set_ylim(bottom=1)
    return _with_legend(figure, list(models), palette)


def size(models: Models, palette: Palette) -> Figure:
    """TEXTS["size"]."""
    figure, axes = _one("root mean square of contexts")
    for label, layers in models.items():
        _heads(axes, [layer.size.numpy() for layer in layers], palette[label])
    axes.set_ylim(bottom=0)
    return _with_legend(figure, list(models), palette)


def sinks(models: Models, palette: Palette) -> Figure:
    """TEXTS["sinks"], one panel a map of each model."""
    panels = [(label, name) for label, layers in models.items() for name in layers[0].class_share]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(COLUMN, 1.6 * down + 0.35), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (label, name) in zip(grid, panels, strict=False):
        layers = models[label]
        _heads(axes, [layer.class_share[name].numpy() for layer in layers], palette[label])
        _heads(axes, [layer.high_share[name].numpy() for layer in layers], palette[label], marker="x", line="--")
        axes.axhline(1 / layers[0].tokens, color=INK, linewidth=0.8)
        axes.set_title(f"{label}: {name}", fontsize=7)
        axes.set_xlabel("layer")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    grid[0].set_ylabel("share of a patch's weight")
    return _with_legend(figure, list(models), palette)


def gradient(models: Models, palette: Palette) -> Figure:
    """TEXTS["gradient"]; for models that have a norm."""
    figure, axes = _one("gradient before / after the norm")
    normed = {label: layers for label, layers in models.items() if any(layer.gain is not None for layer in layers)}
    for label, layers in normed.items():
        nothing = np.full(1, np.nan)
        _heads(axes, [nothing if layer.gain is None else layer.gain.numpy() for layer in layers], palette[label])
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_ylim(bottom=0)
    return _with_legend(figure, list(normed), palette)


def _one(ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("layer (1 at the input)")
    axes.set_ylabel(ylabel)
    return figure, axes


def _heads(axes: Axes, layers: Sequence[np.ndarray], colour: str, *, marker: str = ".", line: str = "-") -> None:
    means = [float(heads.mean()) for heads in layers]
    axes.plot(range(1, len(layers) + 1), means, line, color=colour, linewidth=1.4)
    for place, heads in enumerate(layers, start=1):
        axes.plot([place] * len(heads), heads, marker, color=colour, markersize=4, alpha=0.6, linestyle="none")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _with_legend(figure: Figure, labels: Sequence[str], palette: Palette) -> Figure:
    handles = [Line2D([], [], color=palette[label], linewidth=1.6, label=label) for label in labels]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1.4)
    return figure
