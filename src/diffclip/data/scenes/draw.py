"""Draw a scene with anti-aliasing at any size, with NumPy alone.

Everything is a signed distance in pixels, and half a pixel on either side of an edge fades from 0 to 1: no
supersampling, the same picture at 64 and at 224, and an object costs only its own part of the canvas.
The canvas is (3, size, size) float32, because a row of one channel is long and a row of three channels is not.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffclip.data.scenes import shapes
from diffclip.data.scenes.scene import Background, Bit, Scene, Thing
from diffclip.data.scenes.shapes import Field
from diffclip.data.scenes.vocabulary import BOX, RGB

PENCIL = 0.017  # half the width of a sketched line, in frames
FINEST = 0.075  # the shortest period of a texture, in frames: what 64 pixels still show
INK: RGB = (18, 18, 20)
PIXELS = 32  # a pixelated picture has so many to a side


def draw(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The picture of a scene: (size, size, 3) uint8 RGB."""
    if scene.style == "pixelated":
        return _enlarge(draw(scene._replace(style="flat"), PIXELS), size)
    canvas = _background(scene.background, size)
    for bit in scene.bits:
        _draw_bit(canvas, bit, size)
    for group in reversed(scene.groups):
        for thing in group.things:
            _draw_thing(canvas, thing, size, scene.style)
    if scene.style == "pastel":
        canvas += 0.3 * (np.float32(236) - canvas)
    elif scene.style == "shaded":
        canvas *= _side_light(size)
    np.minimum(canvas, np.float32(255), out=canvas)
    np.maximum(canvas, np.float32(0), out=canvas)
    canvas += np.float32(0.5)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))  # (3, S, S) → (S, S, 3)


def masks(scene: Scene, size: int) -> list[NDArray[np.bool_]]:
    """For every group of the scene, the pixels that show it: (size, size) bool, no pixel in two groups."""
    owner = np.full((size, size), -1, np.int16)
    for index in range(len(scene.groups) - 1, -1, -1):
        for thing in scene.groups[index].things:
            owner[coverage(thing, size)] = index
    return [owner == index for index in range(len(scene.groups))]


def coverage(thing: Thing, size: int) -> NDArray[np.bool_]:
    """The pixels a thing would show if nothing stood before it: (size, size) bool."""
    mask = np.zeros((size, size), np.bool_)
    rows, columns, u, v = _frame(thing, thing.radius * shapes.EXTENT, thing.radius, size)
    mask[rows, columns] = _outline(thing, u, v) < 0
    return mask


@lru_cache(maxsize=8)
def _centres(size: int) -> Field:
    """Where the pixels' centres lie, in frames."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


def _frame(what: Thing | Bit, reach: float, unit: float, size: int) -> tuple[slice, slice, Field, Field]:
    """The rows and columns within `reach`, and where their pixels lie in the thing's own frame, in units."""
    x, y = what.x, what.y
    reach += 1 / size
    centres = _centres(size)
    columns = slice(max(int((x - reach) * size), 0), max(int((x + reach) * size) + 1, 0))
    rows = slice(max(int((y - reach) * size), 0), max(int((y + reach) * size) + 1, 0))
    dx = centres[columns] - np.float32(x)
    dy = (centres[rows] - np.float32(y))[:, None]
    return rows, columns, *_turned(dx, dy, what.angle, unit)


def _turned(dx: Field, dy: Field, angle: float, unit: float) -> tuple[Field, Field]:
    cos, sin = math.cos(math.radians(angle)) / unit, math.sin(math.radians(angle)) / unit
    return cos * dx + sin * dy, cos * dy - sin * dx


def _inside(distance: Field) -> Field:
    """How much of each pixel lies inside, from its signed distance in pixels."""
    return np.minimum(np.maximum(np.float32(0.5) - distance, 0), 1)


def _paint(canvas: Field, alpha: Field, rgb: RGB) -> None:
    canvas += alpha * (np.array(rgb, np.float32)[:, None, None] - canvas)


def _outline(thing: Thing, u: Field, v: Field) -> Field:
    outline = shapes.BOXES[thing.open, thing.above] if thing.shape == BOX else shapes.OUTLINES[thing.shape]
    distance = outline(u, v)
    return np.maximum(distance, -shapes.crack(u, v)) if thing.broken else distance


def _ink_of(thing: Thing, u: Field, v: Field) -> Field | None:
    """Distance to what is drawn on a thing in ink: a box's edges, a sign's letter, a dot."""
    if thing.shape == BOX:
        return shapes.box_ink(u, v, thing.open, thing.above)
    if thing.letter:
        return shapes.letter_ink(u, v, thing.letter)
    return np.hypot(u, v) - 0.25 if thing.dot else None


def _draw_thing(canvas: Field, thing: Thing, size: int, style: str) -> None:
    reach = thing.radius * shapes.EXTENT + (0.02 if style != "flat" else 0)
    rows, columns, u, v = _frame(thing, reach, thing.radius, size)
    patch = canvas[:, rows, columns]
    pixels = thing.radius * size
    distance = _outline(thing, u, v)
    details = _ink_of(thing, u, v)
    if style == "sketch":
        width = PENCIL / thing.radius
        line = np.maximum(np.abs(distance) - width, np.hypot(u, v) - 1 - width)  # no spikes beyond sharp corners
        _paint(patch, _inside(line * pixels), thing.rgb)
        if details is not None:
            if not thing.letter:
                details = np.abs(details) - 0.7 * width
            _paint(patch, _inside(np.maximum(details, distance) * pixels), thing.rgb)
        return
    if style == "watercolour":  # wavering, bleeding edges and uneven pigment
        wash = np.sin(5.3 * u + 40 * thing.x) * np.sin(4.7 * v + 40 * thing.y)
        alpha = _inside((distance + 0.06 * wash) * pixels / (0.03 * size)) * (0.78 + 0.2 * wash)
    else:
        alpha = _inside(distance * pixels)
    if thing.texture == "solid":
        _paint(patch, alpha, thing.rgb)
    else:
        first = np.array(thing.rgb, np.float32)[:, None, None]
        second = np.array(thing.second, np.float32)[:, None, None]
        if thing.texture == "outlined":
            share = _inside((np.abs(distance + 0.27) - 0.09) * pixels)  # a line inside the edge: grounds are dark
        else:
            share = _inside(_texture(thing.texture, u, v, max(0.55, FINEST / thing.radius)) * pixels)
        patch += alpha * (first + share * (second - first) - patch)
    if details is not None:
        _paint(patch, np.minimum(_inside(details * pixels), alpha), thing.second if thing.dot else INK)


def _texture(texture: str, u: Field, v: Field, period: float) -> Field:
    """Signed distance to the second colour of a texture, in the units of u, v and period."""
    across = np.abs(u / period - np.floor(u / period) - 0.5)
    if texture == "striped":
        return (across - 0.22) * period
    down = np.abs(v / period - np.floor(v / period) - 0.5)
    if texture == "dotted":
        return (np.hypot(across, down) - 0.27) * period
    across, down = across - 0.25, down - 0.25  # checkered: one or the other, not both
    return np.maximum(np.minimum(across, down), -np.maximum(across, down)) * period


@lru_cache(maxsize=8)
def _lattice(size: int, points: int = 5) -> Field:
    """Interpolation from `points` lattice values to `size` pixels, smooth (cosine): (size, points)."""
    place = _centres(size) * (points - 1)
    left = np.minimum(place.astype(np.int64), points - 2)
    weight = (0.5 - 0.5 * np.cos(np.pi * (place - left))).astype(np.float32)
    matrix = np.zeros((size, points), np.float32)
    matrix[np.arange(size), left] = 1 - weight
    matrix[np.arange(size), left + 1] = weight
    return matrix


def _background(background: Background, size: int) -> Field:
    colour = np.array(background.rgb, np.float32)[:, None, None]
    if background.texture == "plain":
        return np.tile(colour, (1, size, size))
    if background.texture == "cloudy":
        grid = np.array(background.grid, np.float32).reshape(5, 5)
        share = _lattice(size) @ grid @ _lattice(size).T
    else:
        middle = _centres(size) - np.float32(0.5)
        u, v = _turned(middle, middle[:, None], background.angle, 1.0)
        if background.texture == "shaded":
            share = 1.4 * u
        else:
            share = _inside(_texture(background.texture, u, v, background.period) * size) - np.float32(0.5)
    return colour + background.contrast * share


def _draw_bit(canvas: Field, bit: Bit, size: int) -> None:
    half = 0.5 * bit.length
    rows, columns, u, v = _frame(bit, half + bit.width, 1.0, size)
    distance = np.hypot(np.maximum(np.abs(u) - half, 0), v) - 0.5 * bit.width
    _paint(canvas[:, rows, columns], _inside(distance * size), bit.rgb)


@lru_cache(maxsize=8)
def _side_light(size: int) -> Field:
    """Hard light from the left, (1, size, size)."""
    return np.broadcast_to(1.2 - 0.75 * _centres(size), (1, size, size)).astype(np.float32)


def _enlarge(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    nearest = np.arange(size) * len(picture) // size
    enlarged: NDArray[np.uint8] = picture[nearest[:, None], nearest]
    return enlarged
