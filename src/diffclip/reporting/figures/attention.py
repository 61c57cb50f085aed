"""The figures of `diffclip attend`: relevance by text, and signed attention maps by layer and by head."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffclip.analysis.look import Look
from diffclip.reporting.figures.style import overlay
from diffclip.text import printable

FloatArray = NDArray[np.float64]
SIGNED = matplotlib.colormaps["RdBu_r"]
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "font.family": "sans-serif",
    "text.parse_math": False,
}
GAP = 0.4  # between two maps' heads, in maps
SCALE_QUANTILE = 0.995
"""Of the sizes of all numbers in a figure: where the colours end, so that one patch does not make all others pale."""


LOW, HALF = 0.1, 0.5
"""A cosine below the first, or below the second of the model's highest, finds next to nothing: its map is dimmed."""
DIMMED = 0.25
OWN_SCALE = "Relevance, each map to its own scale"


def relevance_figure(looks: Mapping[str, Look], texts: Sequence[str], *, controls: int = 0) -> Figure:
    """The image and the relevance of each text over it, a model a row; every map is scaled to its own range.

    A map of a low cosine is dimmed: its brightest place is the brightest of nothing. controls: so many of the last
    texts are marked as of what is not in the image.
    """
    with matplotlib.rc_context(STYLE):
        columns = 1 + len(texts)
        figure = Figure(figsize=(2.2 * columns + 0.3, 2.5 * len(looks) + 0.3), layout="constrained")
        grid = figure.subplots(len(looks), columns, squeeze=False)
        for row, (axes, (label, look)) in enumerate(zip(grid, looks.items(), strict=True)):
            _hide_axes(axes[0])
            axes[0].imshow(look.image)
            axes[0].set_ylabel(textwrap.fill(label, 28))
            for column, text in enumerate(texts):
                place = axes[1 + column]
                _hide_axes(place)
                low = is_low(look.scores[column], look.scores)
                place.imshow(overlay(look.image, look.relevance[column], size=448, most=DIMMED if low else 1.0))
                place.set_xlabel(f"cosine {_two_places(look.scores[column])}" + (", low: dimmed" if low else ""))
                if row == 0:
                    marked = f"control: {text}" if column >= len(texts) - controls else text
                    place.set_title(textwrap.fill(marked, 30))
        figure.suptitle(OWN_SCALE, fontsize=8)
    return figure


def answer_figure(
    image: NDArray[np.uint8], answers: Mapping[str, Sequence[tuple[FloatArray, str]]], questions: Sequence[str]
) -> Figure:
    """The image, and for each question where a model looks when it begins to answer, a model a row; answers below.

    answers: model → a map and an answer for each question.
    """
    with matplotlib.rc_context(STYLE):
        columns = 1 + len(questions)
        figure = Figure(figsize=(2.2 * columns + 0.3, 2.5 * len(answers) + 0.3), layout="constrained")
        grid = figure.subplots(len(answers), columns, squeeze=False)
        for row, (axes, (label, of_model)) in enumerate(zip(grid, answers.items(), strict=True)):
            for place in axes:
                _hide_axes(place)
            axes[0].imshow(image)
            axes[0].set_ylabel(textwrap.fill(label, 28))
            for place, question, (attention, said) in zip(axes[1:], questions, of_model, strict=True):
                place.imshow(overlay(image, attention, size=448))
                place.set_xlabel(textwrap.fill(f"“{printable(said)}”", 34))
                if row == 0:
                    place.set_title(textwrap.fill(question, 30))
        figure.suptitle("Attention of the answer's first token, each map to its own scale", fontsize=8)
    return figure


def is_low(score: float, scores: Sequence[float]) -> bool:
    """Whether a cosine says that the text is not found, by itself or beside those of the other texts."""
    return score < max(LOW, HALF * max(scores))


def layer_figure(looks: Mapping[str, Look]) -> Figure:
    """The signed maps of every layer, averaged over heads: layers from left to right, the maps of each model below
    each other, all on one scale."""
    blocks = [
        (label, look.image, name, [layer.maps.get(name) for layer in look.class_token])
        for label, look in looks.items()
        for name in dict.fromkeys(name for layer in look.class_token for name in layer.maps)
    ]
    depth = max(len(look.class_token) for look in looks.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.05 * (depth + 1) + 0.9, 1.12 * len(blocks) + 0.5), layout="constrained")
        grid = figure.subplots(len(blocks), depth + 1, squeeze=False)
        means = [m.mean(0) for *_, maps in blocks for m in maps if m is not None]
        norm = _norm(means)
        shown = ""
        for row, (axes, (label, image, name, maps)) in enumerate(zip(grid, blocks, strict=True)):
            for place in axes:
                _hide_axes(place)
            if shown != label:
                axes[0].imshow(image)
                axes[0].set_title(textwrap.fill(label, 18))
                shown = label
            else:
                axes[0].set_visible(False)
            axes[1].set_ylabel(name)
            for number, (m, layer) in enumerate(zip(maps, looks[label].class_token, strict=True), start=1):
                if m is None:
                    continue
                axes[number].imshow(m.mean(0), cmap=SIGNED, norm=norm)
                if row == 0:
                    axes[number].set_title(f"layer {number}")
                if layer.lam is not None and "λ" in name:
                    axes[number].set_xlabel(f"λ = {_two_places(layer.lam)}")
        _colour_bar(figure, norm)
    return figure


def head_figure(looks: Mapping[str, Look]) -> Figure:
    """The signed maps of every head of every layer: a layer a row, the heads of each map side by side."""
    layers = {label: look.class_token for label, look in looks.items()}
    blocks = {label: [(n, len(m)) for n, m in of_model[0].maps.items()] for label, of_model in layers.items()}
    widths = {label: sum(count + GAP for _, count in named) - GAP for label, named in blocks.items()}
    depth = sum(map(len, layers.values()))
    width, height = 0.55 * max(widths.values()) + 1.5, 0.55 * depth + 0.62 * len(layers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        norm = _norm([m for of_model in layers.values() for layer in of_model for m in layer.maps.values()])
        unit = 0.55 / width, 0.55 / height  # of one map, in parts of the figure
        top = 1.0
        for label, of_model in layers.items():
            figure.text(0.35 / width, top - 0.22 / height, label, fontsize=9, fontweight="bold")
            top -= 0.52 / height
            left = 0.35 / width
            for block, (name, heads) in enumerate(blocks[label]):
                figure.text(left, top + 0.08 / height, f"{name}, heads 1 to {heads}" if heads > 1 else name)
                for row, layer in enumerate(of_model):
                    for column, m in enumerate(layer.maps[name]):
                        corner = left + column * unit[0], top - (row + 1) * unit[1]
                        axes = figure.add_axes((*corner, 0.94 * unit[0], 0.94 * unit[1]))
                        _hide_axes(axes)
                        axes.imshow(m, cmap=SIGNED, norm=norm)
                        if block == 0 and column == 0:
                            axes.set_ylabel(f"layer {row + 1}", fontsize=7)
                left += (heads + GAP) * unit[0]
            top -= len(of_model) * unit[1] + 0.1 / height
        long = min(2.6 / height, 0.7)
        _colour_bar(figure, norm, figure.add_axes((1 - 0.85 / width, 0.5 - long / 2, 0.1 / width, long)))
    return figure


def _two_places(number: float) -> str:
    """With a real minus, and none before zero."""
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")


def _norm(maps: Sequence[FloatArray]) -> Normalize:
    """One scale for all, the same to both sides of 0."""
    sizes = np.concatenate([np.abs(m).ravel() for m in maps])
    limit = float(np.quantile(sizes, SCALE_QUANTILE)) or 1.0
    return Normalize(-limit, limit)


def _colour_bar(figure: Figure, norm: Normalize, place: Axes | None = None) -> None:
    where = {"cax": place} if place is not None else {"ax": figure.axes, "shrink": 0.6, "aspect": 30, "pad": 0.01}
    bar = figure.colorbar(ScalarMappable(norm, SIGNED), extend="both", **where)
    bar.set_label("class token’s attention, × even share")
    bar.outline.set_visible(False)


def _hide_axes(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
