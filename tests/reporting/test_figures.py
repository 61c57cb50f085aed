import io
import xml.etree.ElementTree as ET

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffclip.analysis.curves import Curve
from diffclip.reporting.figures import style as figures
from diffclip.reporting.figures.style import AttentionPanel


def curve(points=50, layers=None):
    steps = np.arange(points) * 10
    values = np.linspace(2, 1, points) if layers is None else np.linspace(0.8, 1, points * layers).reshape(points, -1)
    return Curve(steps, values)


def drawn(label="Diff & <CLIP>"):
    with figures.style(figures.SCREEN):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [1, 0], color=figures.MODELS["CLIP"], label=label)
        axes.legend()
        return figures.to_svg(figure)


def test_svg_follows_the_page_s_colour_and_asks_for_nothing_outside():
    svg = drawn()
    ET.fromstring(svg)
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert figures.MODELS["CLIP"] in svg
    assert "Diff &amp; &lt;CLIP&gt;" in svg
    assert "@import" not in svg
    assert 'href="http' not in svg
    assert svg == drawn()


def test_thin_averages_each_stretch():
    thin = figures.thin(
        Curve(np.arange(7), np.array([[0.0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [20, 21]])), 3
    )
    assert thin.steps.tolist() == [1, 4, 6]
    assert thin.values.tolist() == [[2, 3], [8, 9], [20, 21]]
    short = figures.thin(curve(5), 300)
    assert short.values.tolist() == curve(5).values.tolist()


def test_overlay_is_brightest_where_the_map_is_largest():
    relevance = np.zeros((4, 4))
    relevance[1, 2] = 3.0
    pixels = figures.overlay(np.full((64, 64, 3), 100, np.uint8), relevance, size=128)
    assert pixels.shape == (128, 128, 3)
    brightness = pixels.astype(int).sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 32 <= row < 64
    assert 64 <= column < 96
    scaled = figures.overlay(np.full((64, 64, 3), 100, np.uint8), 1e-6 * relevance, size=128)
    assert np.array_equal(scaled, pixels)  # each map has its own range
    wide = figures.overlay(np.zeros((30, 60, 3), np.uint8), np.zeros((3, 6)), size=100)
    assert wide.shape == (50, 100, 3)
    assert len(np.unique(wide.reshape(-1, 3), axis=0)) == 1  # nothing to see in a flat map


def test_attention_figure_and_png(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    maps = tuple(np.random.default_rng(i).random((4, 4)) for i in range(2))
    panel = AttentionPanel(image, ("a red star", "two blue rings on a striped ground"), maps, maps)
    figure = figures.attention_figure([panel, panel], baseline="CLIP", candidate="DiffCLIP")
    assert len(figure.axes) == 2 * 5
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles[:3] == ["image", "CLIP\na red star", "DiffCLIP\na red star"]
    figures.save(figure, tmp_path / "new" / "panel.png")
    with Image.open(tmp_path / "new" / "panel.png") as opened:
        assert opened.width > opened.height
    with Image.open(io.BytesIO(figures.to_png(image))) as opened:
        assert np.array_equal(np.asarray(opened), image)


def test_what_the_font_lacks_is_told_in_one_line(tmp_path, caplog):
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("红色的星 red star")
    axes.set_xlabel("λ, plain")
    figures.save(figure, tmp_path / "boxes.png")
    assert (tmp_path / "boxes.png").exists()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        "a figure shows boxes in place of 红 (U+7EA2), 色 (U+8272), 的 (U+7684) and 1 more, which its font lacks"
    )
    caplog.clear()
    figure.suptitle("é λ ±")
    axes.set_title("red star")
    figures.save(figure, tmp_path / "none.pdf")
    assert not caplog.records
