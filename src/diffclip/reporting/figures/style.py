"""Figures of a comparison: curves of both runs, λ by layer over time, relevance maps on their image.

Built with matplotlib's objects, so no state is shared and no display is needed. As SVG they take the colour
of the text around them, so one figure serves a light and a dark page.
"""

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from diffclip import durable
from diffclip.analysis.curves import Curve
from diffclip.text import printable_lines

log = logging.getLogger(__name__)

# The paper's blue and pink, and for its other variants colours that stay apart for colour-blind readers and on white
# and dark ground (a test simulates both).
MODELS = {"CLIP": "#1659f0", "DiffCLIP": "#ef2087", "DiffCLIP*": "#c97ce6", "DiffCLIP†": "#c17006"}
MORE = ("#137b78", "#8f6135")
LAYERS = LinearSegmentedColormap.from_list("layers", ["#a85b00", "#c81e5b", "#7c3aed", "#0e7490"])
HEAT = matplotlib.colormaps["inferno"]
# Stands for "the colour of the text around the figure" until the SVG is written.
INK = "#808182"
STYLE = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name is a dollar
    "grid.alpha": 0.25,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "diffclip",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# Of files: on white, with fonts embedded as text that can be searched. The widths are a paper's column.
PRINT = {
    **STYLE,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#1a1a1a",
    "font.size": 7,
    "pdf.fonttype": 42,
    "text.color": "#1a1a1a",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
SCREEN = {**STYLE, "font.size": 7}
# A curve is averaged down to this many points: more cannot be seen, and only make the file larger.
POINTS = 300

Pixels = NDArray[np.uint8]
Map = NDArray[np.floating]


@dataclass(frozen=True)
class AttentionPanel:
    """Where two models look in one image, for each of some queries."""

    image: Pixels
    """(H, W, 3)"""
    queries: tuple[str, ...]
    baseline: tuple[Map, ...]
    """A relevance map (rows, columns) ≥ 0 for each query."""
    candidate: tuple[Map, ...]


def style(settings: Mapping[str, object]) -> AbstractContextManager[None]:
    """Draw in a style, STYLE, SCREEN or PRINT, while the context lasts."""
    return matplotlib.rc_context(dict(settings))


def attention_figure(panels: Sequence[AttentionPanel], *, baseline: str, candidate: str) -> Figure:
    """Image and both models' maps for each query, one image a row: the paper's Figure 2."""
    queries = len(panels[0].queries)
    with matplotlib.rc_context({"font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(1.7 * (1 + 2 * queries), 1.95 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1 + 2 * queries, squeeze=False)
        for row, panel in zip(grid, panels, strict=True):
            _show(row[0], panel.image, "image")
            for query, text in enumerate(panel.queries):
                pair = ((baseline, panel.baseline[query]), (candidate, panel.candidate[query]))
                for column, (label, relevance) in enumerate(pair):
                    _show(
                        row[1 + 2 * query + column],
                        overlay(panel.image, relevance),
                        f"{label}\n{textwrap.fill(text, 26)}",
                    )
    return figure


def overlay(image: Pixels, relevance: Map, *, size: int = 256, most: float = 1.0) -> Pixels:
    """A relevance map as heat over its dimmed image: (h, w, 3) uint8, the longer edge `size`.

    Each map is scaled to its own range, so colours compare places in one map, not two maps. A map that is the
    same everywhere has nothing to show, and stays dark. most: how strong the brightest place is, at most 1.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    edges = (max(1, round(width * scale)), max(1, round(height * scale)))
    base = np.asarray(Image.fromarray(image).resize(edges, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    spread = relevance.max() - relevance.min()
    unit = (relevance - relevance.min()) / spread if spread > 0 else np.zeros_like(relevance)
    smooth = Image.fromarray(unit.astype(np.float32)).resize(edges, Image.Resampling.BICUBIC)
    strength = most * np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)[..., None]  # (h, w, 1)
    heat = HEAT(0.15 + 0.85 * strength[..., 0])[..., :3]
    dimmed = 0.2 * base.mean(axis=2, keepdims=True) + 0.45 * base
    mixed = dimmed * (1 - 0.8 * strength) + heat * 0.8 * strength
    pixels: Pixels = np.rint(mixed * 255).astype(np.uint8)
    return pixels


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """A curve of at most about `points` points, each the mean of its stretch."""
    stretch = -(-len(curve.steps) // points)
    starts = np.arange(0, len(curve.steps), stretch)
    counts = np.diff(np.append(starts, len(curve.steps)))
    means = (np.add.reduceat(curve.values, starts, axis=0).T / counts).T
    return Curve(np.add.reduceat(curve.steps, starts) // counts, means)


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element to be put into a page, drawn in the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        _write(figure, buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def to_png(pixels: Pixels) -> bytes:
    """(h, w, 3) uint8 as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_bytes(figure: Figure, suffix: str, *, dpi: int = 160) -> bytes:
    """A file of a figure on white, "png" or "pdf"; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if suffix == "pdf" else None
    _write(figure, buffer, format=suffix, dpi=dpi, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its suffix says: png, pdf or svg. Raises OSError."""
    with durable.writing(path) as unfinished:
        _write(figure, unfinished, format=path.suffix[1:].lower(), dpi=160, facecolor="white")


def _write(figure: Figure, target: Path | IO[Any], **options: Any) -> None:
    """The only way out for figures: names and captions in them are plain text, whatever they hold."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        if text.get_text() != (shown := printable_lines(text.get_text())):
            text.set_text(shown)
    with matplotlib.rc_context({"text.parse_math": False}), _told_of_boxes():
        figure.savefig(target, **options)


@contextmanager
def _told_of_boxes() -> Iterator[None]:
    """Inside the `with` matplotlib draws boxes for what its font lacks, which is told once, in one line, at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking = dict.fromkeys(
        chr(int(found[1])) for each in caught if (found := re.match(r"Glyph (\d+) .*missing", str(each.message)))
    )
    for each in caught:
        if not re.match(r"Glyph \d+ .*missing", str(each.message)):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:
        shown = ", ".join(f"{character} (U+{ord(character):04X})" for character in list(lacking)[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        log.warning("a figure shows boxes in place of %s%s, which its font lacks", shown, more)


def _show(axes: Axes, pixels: Pixels, title: str) -> None:
    axes.imshow(pixels)
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
