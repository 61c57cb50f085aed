"""Signed distances: one function for each shape, negative inside, in units of the shape's radius.

`u` points right and `v` down in the shape's own frame, float32 arrays of one shape. Distances are exact near
most of the edge, where they decide the anti-aliasing; elsewhere some are smaller than the true distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Field: TypeAlias = Any  # a float32 array; NumPy types what its universal functions return as Any, too
EXTENT = 1.1  # every shape lies in |u|, |v| ≤ EXTENT, however it is turned


def _half_planes(u: Field, v: Field, *planes: tuple[float, float, float]) -> Field:
    """Intersection of half-planes a·u + b·v ≤ c with (a, b) of length 1."""
    inside = planes[0][0] * u + planes[0][1] * v - planes[0][2]
    for a, b, c in planes[1:]:
        inside = np.maximum(inside, a * u + b * v - c)
    return inside


def _through(*corners: tuple[float, float]) -> tuple[tuple[float, float, float], ...]:
    """Half-planes of a convex polygon, its corners clockwise on the screen."""
    planes = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(u1 - u0, v1 - v0)
        a, b = (v1 - v0) / length, (u0 - u1) / length
        planes.append((a, b, a * u0 + b * v0))
    return tuple(planes)


def _segment(u: Field, v: Field, u0: float, v0: float, u1: float, v1: float) -> Field:
    """Distance to the line from (u0, v0) to (u1, v1)."""
    du, dv = u1 - u0, v1 - v0
    along = np.minimum(np.maximum(((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv), 0), 1)
    return np.hypot(u - u0 - along * du, v - v0 - along * dv)


def _circle(u: Field, v: Field) -> Field:
    return np.hypot(u, v) - 0.93


def _square(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - 0.76


_TRIANGLE = _through((0.0, -1.0), (0.9, 0.62), (-0.9, 0.62))
_BOLT = _through((0.35, -1.0), (0.12, 0.16), (-0.62, 0.16))
_HEAD = _through((1.0, 0.0), (0.12, 0.78), (0.12, -0.78))
_FLAP = _through((0.66, -0.42), (0.95, -0.84), (1.0, -0.72), (0.84, -0.34))


def _triangle(u: Field, v: Field) -> Field:
    return _half_planes(u, v, *_TRIANGLE)


def _star(u: Field, v: Field) -> Field:
    # Fold the plane onto one tenth of the star, whose edge is then a single line.
    u = np.abs(u)
    for a, b in ((0.809017, 0.587785), (-0.809017, 0.587785)):
        beyond = 2 * np.maximum(a * u + b * v, 0)
        u = u - a * beyond
        v = v - b * beyond
    return _half_planes(np.abs(u), v, _STAR_EDGE)


def _star_edge(inner: float = 0.46) -> tuple[float, float, float]:
    """The line from the tip (0, −1) to the notch at 36°, `inner` from the middle."""
    notch = (inner * math.sin(math.pi / 5), -inner * math.cos(math.pi / 5))
    return _through((0.0, -1.0), notch, (0.0, 0.0))[0]


_STAR_EDGE = _star_edge()


def _heart(u: Field, v: Field) -> Field:
    # A square on its corner, with a half circle on each of its upper edges.
    u, v = np.abs(u), v - np.float32(0.1)
    square = 0.707107 * (u + np.abs(v)) - 0.53
    return np.minimum(square, np.hypot(u - 0.375, v + 0.375) - 0.53)


def _cross(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.3)


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.hypot(u, v) - 0.7) - 0.24


def _moon(u: Field, v: Field) -> Field:
    return np.maximum(np.hypot(u, v) - 0.95, 0.8 - np.hypot(u - 0.48, v))


def _arrow(u: Field, v: Field) -> Field:
    shaft = np.maximum(np.abs(u + 0.4) - 0.6, np.abs(v) - 0.27)
    return np.minimum(shaft, _half_planes(u, v, *_HEAD))


def _hexagon(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(v, 0.866025 * u + 0.5 * v) - 0.84


def _bolt(u: Field, v: Field) -> Field:
    return np.minimum(_half_planes(u, v, *_BOLT), _half_planes(-u, -v, *_BOLT))


def _box_side(u: Field, v: Field) -> Field:
    body = np.maximum(np.abs(u) - 0.72, np.abs(v - 0.17) - 0.57)
    lid = np.maximum(np.abs(u) - 0.88, np.abs(v + 0.5) - 0.2)
    return np.minimum(body, lid)


def _open_box_side(u: Field, v: Field) -> Field:
    body = np.maximum(np.abs(u) - 0.72, np.abs(v - 0.17) - 0.57)
    return np.minimum(body, _half_planes(np.abs(u), v, *_FLAP))


def _box_above(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u) - 0.86, np.abs(v) - 0.62)


def _open_box_above(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.98, v - 0.42), np.maximum(u - 0.6, v - 0.84))


def _sign(u: Field, v: Field) -> Field:
    plate = np.maximum(np.abs(u) - 0.74, np.abs(v + 0.1) - 0.8)
    post = np.maximum(np.abs(u) - 0.13, np.abs(v - 0.8) - 0.25)
    return np.minimum(plate, post)


OUTLINES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "arrow": _arrow,
    "hexagon": _hexagon,
    "bolt": _bolt,
    "sign": _sign,
}
BOXES: dict[tuple[bool, bool], Callable[[Field, Field], Field]] = {  # (open, above)
    (False, False): _box_side,
    (True, False): _open_box_side,
    (False, True): _box_above,
    (True, True): _open_box_above,
}


def box_ink(u: Field, v: Field, is_open: bool, above: bool) -> Field:
    """What is drawn in ink on a box: the edge of its lid, the dark of its inside, or the tape on its top."""
    if is_open and above:
        return np.maximum(np.abs(u) - 0.48, np.abs(v) - 0.34)
    if is_open:
        return np.hypot(u / 0.6, (v + 0.26) / 0.14) * 0.14 - 0.14
    if above:
        return np.minimum(np.maximum(np.abs(v) - 0.07, np.abs(u) - 0.86), np.abs(np.abs(u) - 0.62) - 0.04)
    return np.maximum(np.abs(v + 0.3) - 0.055, np.abs(u) - 0.88)


_STROKES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "A": ((-0.42, 0.4, 0.0, -0.6), (0.0, -0.6, 0.42, 0.4), (-0.24, 0.08, 0.24, 0.08)),
    "E": (
        (-0.3, -0.6, -0.3, 0.4),
        (-0.3, -0.6, 0.36, -0.6),
        (-0.3, -0.1, 0.26, -0.1),
        (-0.3, 0.4, 0.36, 0.4),
    ),
    "L": ((-0.3, -0.6, -0.3, 0.4), (-0.3, 0.4, 0.36, 0.4)),
    "T": ((-0.42, -0.6, 0.42, -0.6), (0.0, -0.6, 0.0, 0.4)),
    "V": ((-0.4, -0.6, 0.0, 0.4), (0.0, 0.4, 0.4, -0.6)),
    "X": ((-0.38, -0.6, 0.38, 0.4), (-0.38, 0.4, 0.38, -0.6)),
}


def letter_ink(u: Field, v: Field, letter: str) -> Field:
    """The strokes of a letter on a sign's plate."""
    strokes = [_segment(u, v, *stroke) for stroke in _STROKES[letter]]
    nearest = strokes[0]
    for stroke in strokes[1:]:
        nearest = np.minimum(nearest, stroke)
    return nearest - 0.13


def crack(u: Field, v: Field) -> Field:
    """The zigzag gap that runs through a broken thing."""
    zigzag = np.abs(2.2 * v - np.floor(2.2 * v) - 0.5)
    return np.abs(u + 0.45 * zigzag - 0.11) - 0.13
