"""What is drawn: shapes against references written another way, anti-aliasing, masks, styles."""

import numpy as np
import pytest
from matplotlib.path import Path
from PIL import Image

from diffclip.data.scenes import SPLITS, SceneSource, draw
from diffclip.data.scenes.grammar import captions
from diffclip.data.scenes.scene import Background, Group, Scene, Thing
from diffclip.data.scenes.vocabulary import GROUNDS, LETTERS, PROPS, SHAPES

GROUND = Background("grey", "plain", (60, 60, 60), 0.0, 0.2, 0.0, ())


def thing(shape, **fields):
    fields = {"x": 0.5, "y": 0.5, "radius": 0.3, "angle": 0.0, **fields}
    return Thing(shape, "white", (240, 240, 240), (120, 120, 120), fields.pop("texture", "solid"), **fields)


def scene(*things, style="flat"):
    return Scene(tuple(Group((one,)) for one in things), (), GROUND, style, 0)


def corners(*points):
    return Path([*points, points[0]], closed=True).contains_points


def star(inner=0.46):
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, inner, 1.0)
    return list(zip(radii * np.sin(angles), -radii * np.cos(angles), strict=True))


# The shapes once more, in float64, as polygons and as sets of points.
REFERENCE = {
    "circle": lambda p: (p**2).sum(1) < 0.93**2,
    "square": corners((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)),
    "triangle": corners((0, -1), (0.9, 0.62), (-0.9, 0.62)),
    "star": corners(*star()),
    "heart": lambda p: (
        corners((0, 0.8495), (0.7495, 0.1), (0, -0.6495), (-0.7495, 0.1))(p)
        | ((np.abs(p) * [1, 0] + p * [0, 1] - [0.375, -0.275]) ** 2).sum(1).__lt__(0.53**2)
    ),
    "cross": lambda p: (
        corners((-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3))(p)
        | corners((-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95))(p)
    ),
    "ring": lambda p: (np.linalg.norm(p, axis=1) < 0.94) & (np.linalg.norm(p, axis=1) > 0.46),
    "moon": lambda p: (np.linalg.norm(p, axis=1) < 0.95) & (np.linalg.norm(p - [0.48, 0], axis=1) > 0.8),
    "bolt": lambda p: (
        corners((0.35, -1), (0.12, 0.16), (-0.62, 0.16))(p) | corners((-0.35, 1), (-0.12, -0.16), (0.62, -0.16))(p)
    ),
    "arrow": lambda p: (
        corners((-1, -0.27), (0.2, -0.27), (0.2, 0.27), (-1, 0.27))(p) | corners((0.12, -0.78), (1, 0), (0.12, 0.78))(p)
    ),
}


@pytest.mark.parametrize("shape", REFERENCE)
@pytest.mark.parametrize("angle", [0.0, 37.0])
def test_coverage_is_the_share_of_each_pixel_inside_the_shape(shape, angle):
    size, fine = 48, 16
    drawn = draw.draw(scene(thing(shape, angle=angle)), size)[:, :, 0].astype(float)
    covered = (drawn - 60) / (240 - 60)  # how much of each pixel shows the thing
    place = (np.arange(size * fine, dtype=np.float64) + 0.5) / (size * fine)
    x, y = np.meshgrid((place - 0.5) / 0.3, (place - 0.5) / 0.3)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    points = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1).reshape(-1, 2)  # clockwise on the screen
    exact = REFERENCE[shape](points).reshape(size, fine, size, fine).mean(axis=(1, 3))
    assert abs(covered - exact).max() < 0.45  # a corner inside a pixel is where a distance misjudges most
    assert abs(covered - exact).mean() < 0.006
    assert covered.sum() == pytest.approx(exact.sum(), rel=0.02)


def test_every_shape_and_view_is_drawn_inside_its_square():
    looks = [thing(shape) for shape in (*SHAPES, "arrow")] + [thing("sign", letter=letter) for letter in LETTERS]
    looks += [thing("box", open=is_open, above=above) for is_open in (False, True) for above in (False, True)]
    pictures = []
    for look in looks:
        for angle in (-10.0, 0.0, 10.0):
            picture = draw.draw(scene(look._replace(angle=angle)), 100)
            changed = (picture != 60).any(axis=2)
            rows, columns = np.nonzero(changed)
            assert min(rows.min(), columns.min()) >= 100 * (0.5 - 0.33) - 1
            assert max(rows.max(), columns.max()) <= 100 * (0.5 + 0.33)
            assert draw.coverage(look, 100).mean() > 0.05
        pictures.append(picture.tobytes())
    assert len(set(pictures)) == len(looks)
    assert {look.shape for look in looks} == {*SHAPES, *PROPS}


def test_arrows_point_and_moons_face_where_captions_say():
    for angle, way in ((0, (1, 0)), (90, (0, 1)), (180, (-1, 0)), (270, (0, -1))):
        rows, columns = np.nonzero(draw.coverage(thing("arrow", angle=angle), 200))
        along = (columns - 99.5) * way[0] + (rows - 99.5) * way[1]
        across = np.abs((columns - 99.5) * way[1] + (rows - 99.5) * way[0])
        assert across[along > 0].max() > 2 * across[along < 0].max()  # the head is the wide end
    for angle, words in ((0, "facing right"), (180, "facing left")):
        moon = scene(thing("moon", angle=angle))
        columns = np.nonzero(draw.coverage(moon.groups[0].kind, 200))[1]
        assert (columns.mean() < 95) == (angle == 0)  # the back is the heavy side
        assert any(words in caption for caption in captions(moon, _Say(), ("focus",)))


class _Say:
    """A stream in which every attribute is said."""

    def random(self):
        return 0.0


@pytest.mark.parametrize("split", ["train", "test_rendition", "test_sketch", "test_adversarial"])
def test_the_same_scene_looks_the_same_at_every_size(split):
    for index in range(12):
        large = SceneSource(split, size=256)[index].image
        small = SceneSource(split, size=64)[index].image
        if SceneSource(split).scene(index).style == "pixelated":
            continue  # shown by 32 × 32 squares, whatever the size
        reduced = np.asarray(Image.fromarray(large).reduce(4)).astype(float)
        assert abs(reduced - small).mean() < 3.0


@pytest.mark.parametrize("split", SPLITS)
def test_masks_are_the_pixels_that_show_their_group(split):
    """Without a group its pixels change, and none further away."""
    source = SceneSource(split, size=96, length=25)
    for index in range(25):
        full = source.scene(index)
        picture = draw.draw(full, 96).astype(int)
        for position, (_, mask) in enumerate(source.masks(index)):
            assert mask.sum() >= 25
            rest = full._replace(groups=full.groups[:position] + full.groups[position + 1 :])
            changed = abs(draw.draw(rest, 96).astype(int) - picture).max(axis=2) > 30
            if full.style in ("flat", "pastel", "shaded"):
                assert changed[mask].mean() > 0.6  # the rest is drawn in ink or in shadow
            assert not (changed & ~np.any([around(one, 96) for one in full.groups[position].things], axis=0)).any()


def around(one, size):
    """The pixels of the square around a thing, and a square of a pixelated picture more."""
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    return np.maximum(abs(columns - one.x), abs(rows - one.y)) < 1.1 * one.radius + 0.035


def test_a_thing_in_front_takes_pixels_from_the_mask_behind():
    front, behind = thing("circle", radius=0.2), thing("square", x=0.6)
    masks = draw.masks(scene(front, behind), 64)
    np.testing.assert_array_equal(masks[0], draw.coverage(front, 64))
    np.testing.assert_array_equal(masks[1], draw.coverage(behind, 64) & ~masks[0])
    assert draw.draw(scene(front._replace(rgb=(200, 0, 0)), behind), 64)[32, 32].tolist() == [200, 0, 0]


def test_things_stand_out_from_every_ground():
    for index in range(300):
        for split in ("test", "test_v2"):
            full = SceneSource(split).scene(index)
            ground = max(GROUNDS[full.background.ground])
            for group in full.groups:
                assert max(group.kind.rgb) - ground > 60


def test_styles_differ_and_keep_the_scene():
    flat = scene(thing("star", radius=0.25))
    pictures = {
        style: draw.draw(flat._replace(style=style), 64)
        for style in ("flat", "pastel", "pixelated", "watercolour", "shaded", "sketch")
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 6
    inside = draw.masks(flat, 64)[0]
    for style, picture in pictures.items():
        brightness = picture.mean(axis=2)
        assert brightness[inside].mean() > brightness[~inside].mean() + 30, style


def test_textures_show_two_colours_and_breaking_takes_some_away():
    plain = draw.draw(scene(thing("circle")), 64)
    for texture in ("striped", "dotted", "checkered", "outlined"):
        picture = draw.draw(scene(thing("circle", texture=texture)), 64)
        inside = draw.coverage(thing("circle", radius=0.25), 64)
        assert 0.1 < (picture[inside, 0] < 150).mean() < 0.6, texture
        np.testing.assert_array_equal(picture[~draw.coverage(thing("circle", radius=0.35), 64)], 60)
    assert draw.coverage(thing("circle", broken=True), 64).sum() < 0.9 * draw.coverage(thing("circle"), 64).sum()
    dotted = draw.draw(scene(thing("circle", dot=True)), 64)
    assert (dotted[32, 32] == 120).all()
    assert (plain[32, 32] == 240).all()
