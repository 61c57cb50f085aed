import itertools

import numpy as np
import pytest
from made_results import paper_results, scene_results

from diffclip.reporting.collect import collect
from diffclip.reporting.families import find_groups
from diffclip.reporting.figures import bars as paper_figures
from diffclip.reporting.figures import curves as curve_figures
from diffclip.reporting.figures import points
from diffclip.reporting.figures import style as figures
from diffclip.reporting.figures.bars import Palette
from diffclip.reporting.scores import Scores
from diffclip.reporting.tables import layouts as paper_tables
from diffclip.reporting.tables.fill import fill

# Machado et al. 2009, severity 1: what people with one kind of cone missing see, in linear RGB.
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    bright, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other)), reverse=True)
    return bright / dark


@pytest.mark.parametrize("matrix", SEEN.values(), ids=SEEN)
def test_colours_are_told_apart_by_everybody(matrix):
    colours = [*figures.MODELS.values(), *figures.MORE]
    seen = [lab(np.array(matrix) @ linear(colour)) for colour in colours]
    for one, other in itertools.combinations(range(len(colours)), 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 19, (colours[one], colours[other])


def test_colours_stand_out_on_paper_and_on_a_dark_page():
    for colour in (*figures.MODELS.values(), *figures.MORE):
        assert contrast(colour, "#ffffff") > 2.6, colour
        assert contrast(colour, "#1a2029") > 2.8, colour


def test_a_model_has_one_colour_and_others_get_what_is_left():
    palette = Palette.of(["Mine", "DiffCLIP", "CLIP", "Mine"])
    assert palette["CLIP"] == figures.MODELS["CLIP"]
    assert palette["Mine"] not in (palette["CLIP"], palette["DiffCLIP"])


def scenes(tmp_path):
    collection = collect([scene_results(tmp_path)])
    (one,) = find_groups(collection)
    return Scores(collection), one, Palette.of([family.label for family in one.families])


def test_bars_are_as_high_as_the_table_says(tmp_path):
    scores, one, palette = scenes(tmp_path)
    table = fill(paper_tables.shift_layout(scores, one), scores, [one])
    figure = paper_figures.bars(table, one.name, palette)
    first = figure.axes[0]
    assert [patch.get_height() for patch in first.patches] == pytest.approx([52.0, 57.0, 53.0])
    assert first.get_ylim()[0] == 0
    assert {text.get_text() for text in first.texts} == {"52.0", "57.0", "53.0"}
    assert len({patch.get_facecolor() for patch in first.patches}) == 3
    assert figure.get_figwidth() == paper_figures.COLUMN


def test_a_missing_bar_leaves_its_place_empty_and_the_paper_s_is_hollow(tmp_path):
    collection = collect([paper_results(tmp_path / "results.jsonl")])
    (one,) = find_groups(collection)
    scores, palette = Scores(collection), Palette.of(["CLIP", "DiffCLIP"])
    table = fill(paper_tables.task_layout(scores, one, 1), scores, [one], with_paper=True)
    axes = paper_figures.bars(table, one.name, palette).axes
    linear_probe = [(round(bar.get_height(), 1), bar.get_fill()) for bar in axes[0].patches]
    assert linear_probe == [(49.6, True), (77.0, False), (77.3, False)]  # DiffCLIP's average is not known here
    assert [bar.get_fill() for bar in axes[1].patches] == [False, False]
    assert [text.get_text() for text in axes[2].texts] == ["40.0", "55.3", "40.0", "55.3"]


def test_radar_has_the_nine_patterns_and_chance(tmp_path):
    scores, one, palette = scenes(tmp_path)
    table = fill(paper_tables.pattern_layout(scores, one), scores, [one])
    axes = paper_figures.radar(table, one.name, palette).axes[0]
    chance, *lines = axes.lines
    assert set(chance.get_ydata()) == {25.0}
    assert [len(line.get_ydata()) for line in lines] == [10, 10, 10]
    assert lines[1].get_ydata()[0] == pytest.approx(37.0)
    assert len(axes.texts) == 9


def test_curves_go_through_the_scores(tmp_path):
    scores, one, palette = scenes(tmp_path)
    attacks = curve_figures.attacks(points.attacks(scores, one, "scenes/test"), palette).axes
    assert [axes.get_title() for axes in attacks] == ["FGSM", "PGD, 20 steps"]
    clip = attacks[0].lines[0]
    assert list(clip.get_xdata()) == [0, 0.5, 2]
    assert list(clip.get_ydata()) == pytest.approx([0.52, 0.52 / 1.5, 0.52 / 3])
    (severities,) = curve_figures.severities(points.severities(scores, one, "scenes/test"), palette).axes
    assert list(severities.lines[0].get_ydata()) == pytest.approx([0.52, 0.47, 0.42, 0.37, 0.32, 0.27])
    noise = curve_figures.noise(points.noise(scores, one, "scenes/test"), palette).axes
    assert [axes.get_title() for axes in noise[:3]] == ["CLIP", "DiffCLIP", "DiffCLIP†"]
    assert [len(axes.lines) for axes in noise[:3]] == [3, 3, 3]
    assert list(noise[0].lines[0].get_ydata()) == pytest.approx([0.1, 0.2])


def test_curves_in_words(tmp_path):
    scores, one, _palette = scenes(tmp_path)
    attacks = points.panels_in_words(points.attacks(scores, one, "scenes/test"), x="ε")
    assert attacks.startswith("FGSM: CLIP 52.0 at ε 0, 34.7 at ε 0.5, 17.3 at ε 2; DiffCLIP ")
    assert ". PGD, 20 steps: CLIP 52.0 at ε 0" in attacks
    noise = points.panels_in_words(points.noise(scores, one, "scenes/test"), x="layer", number="plain")
    assert noise.startswith("CLIP: clean 0.10 at layer 1, 0.20 at layer 2; cluttered ")
    assert points.lambdas_in_words(one.families[1]).startswith("image tower 1.00, 0.69; text tower ")


def test_lambda_of_every_seed(tmp_path):
    _scores, one, palette = scenes(tmp_path)
    visual, text = curve_figures.lambda_by_layer(one.families, palette).axes
    mean, *seeds = visual.lines[:4]  # of DiffCLIP, then of DiffCLIP†
    assert list(mean.get_ydata()) == pytest.approx([1.0, 0.69])
    assert [line.get_ydata()[1] for line in seeds] == pytest.approx([0.7, 0.69, 0.68])
    assert len(text.lines) == 4  # DiffCLIP† has no λ there
    over_time = curve_figures.lambda_over_time(one.families[1])
    assert [len(axes.lines) for axes in over_time.axes] == [2, 3]
    assert not points.lambda_curves(one.baseline)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fgsm", "FGSM"),
        ("pgd20", "PGD, 20 steps"),
        ("pgd20x5_margin", "PGD, 20 steps, 5 starts, margin loss"),
        ("new", "NEW"),
    ],
)
def test_attacks_in_words(name, text):
    assert points.attack_name(name) == text
