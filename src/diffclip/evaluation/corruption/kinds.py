"""The fifteen common corruptions of ImageNet-C, each in five strengths (Hendrycks & Dietterich 2019, arXiv 1903.12261).

Where a function departs from the authors' scripts (github.com/hendrycks/robustness, ImageNet-C/create_c), it says so;
`corruption_strengths` has the constants, docs/robustness.md what all this means for numbers.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from math import ceil, cos, radians, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from diffclip.evaluation.corruption.strengths import arguments

Pixels = NDArray[np.float32]
"""(S, S, 3), from 0 to 1."""


def gaussian_noise(x: Pixels, rng: np.random.Generator, sigma: float) -> Pixels:
    """Normal noise in each channel of each pixel."""
    return x + rng.normal(scale=sigma, size=x.shape).astype(np.float32)


def shot_noise(x: Pixels, rng: np.random.Generator, photons: float) -> Pixels:
    """Poisson noise of a sensor that counts `photons` where the image is white."""
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Pixels, rng: np.random.Generator, amount: float) -> Pixels:
    """A share `amount` of the channel values becomes 0 or 1, as likely the one as the other."""
    hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(np.float32), x)


def defocus_blur(x: Pixels, rng: np.random.Generator, radius: float, alias_blur: float) -> Pixels:
    """The image of a lens out of focus: the mean over a disc, whose edge is softened."""
    return ndimage.convolve(x, disc(radius, alias_blur)[:, :, None], mode="mirror")


def disc(radius: float, alias_blur: float) -> NDArray[np.float32]:
    """A disc of weights that sum to 1, smoothed by a Gaussian of 3 × 3 pixels (5 × 5 for radii above 8)."""
    reach = max(8, ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    weights = (x**2 + y**2 <= radius**2).astype(np.float32)
    smooth = ndimage.gaussian_filter(weights / weights.sum(), alias_blur, mode="mirror", radius=1 if radius <= 8 else 2)
    return smooth.astype(np.float32)


def glass_blur(x: Pixels, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> Pixels:
    """Pixels displaced by up to `reach`, between two Gaussian blurs.

    The paper speaks of a shuffle. The published images were made by code that gives each pixel its neighbour's value
    and never the neighbour its own, and so does this.
    """
    size = len(x)
    rows, columns = (axis.ravel() for axis in np.mgrid[size - reach : reach : -1, size - reach : reach : -1])
    place = list(range(size * size))  # which pixel of the blurred image each pixel shows
    for _ in range(rounds):
        dy, dx = rng.integers(-reach, reach, size=(2, len(rows)))
        target, origin = rows * size + columns, (rows + dy) * size + columns + dx
        for to, source in zip(target.tolist(), origin.tolist(), strict=True):  # in order: later ones see earlier ones
            place[to] = place[source]
    return _smooth(_smooth(x, sigma).reshape(-1, 3)[place].reshape(x.shape), sigma)


def _smooth(x: Pixels, sigma: float) -> Pixels:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: Pixels, rng: np.random.Generator, radius: int, sigma: float) -> Pixels:
    """Motion in a random direction within 45° of the horizontal."""
    return streak(x, radius, sigma, rng.uniform(-45, 45))


def streak(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """One-sided Gaussian trail of 2 radius + 1 whole pixels at `angle` (degrees); beyond the edge, the edge."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    result = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        dy, dx = ceil(step * sin(radians(angle)) - 0.5), ceil(step * cos(radians(angle)) - 0.5)
        shifted = x[np.clip(rows + dy, 0, len(rows) - 1)][:, np.clip(columns + dx, 0, len(columns) - 1)]
        result += np.float32(weight) * shifted
    return result


def zoom_blur(x: Pixels, rng: np.random.Generator, stop: float, step: float) -> Pixels:
    """The mean of the image and its enlargements by 1, 1 + step, … up to `stop`, which is left out."""
    factors = np.arange(1, stop, step)
    result = x.copy()
    for factor in factors.tolist():
        result += zoom_in(x, factor)
    return result / np.float32(len(factors) + 1)


def zoom_in(x: Pixels, factor: float) -> Pixels:
    """The central part of an image (S, S, C), enlarged to S × S, bilinear."""
    matrix = _zoom(len(x), factor)
    rows = (matrix @ x.reshape(len(x), -1)).reshape(x.shape)
    return matrix @ rows  # along the columns: (S, S) @ (S, S, C)


@lru_cache(maxsize=256)
def _zoom(size: int, factor: float) -> NDArray[np.float32]:
    """The zoom of one axis is linear, so it is the matrix that zooming the unit vectors gives: (size, size)."""
    part = ceil(size / factor)
    top = (size - part) // 2
    large = ndimage.zoom(np.eye(size, dtype=np.float32)[top : top + part], (factor, 1), order=1)
    top = (len(large) - size) // 2
    return large[top : top + size]


def snow(
    x: Pixels,
    rng: np.random.Generator,
    mean: float,
    sigma: float,
    zoom: float,
    threshold: float,
    radius: int,
    blur: float,
    keep: float,
) -> Pixels:
    """The image whitened, and flakes that fall, once as drawn and once turned by 180°."""
    flakes = zoom_in(rng.normal(mean, sigma, size=(*x.shape[:2], 1)).astype(np.float32), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1).astype(np.float32)
    flakes = streak(flakes, radius, blur, rng.uniform(-135, -45))
    grey = x @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)  # (S, S, 1)
    whitened = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    return (whitened + flakes + np.rot90(flakes, 2)).astype(np.float32)


def frost(x: Pixels, rng: np.random.Generator, keep: float, strength: float) -> Pixels:
    """A pane with ice crystals over the image.

    The original overlays parts of photographs of frost, which are not here: the pane is drawn, with about their colours
    and contrast, so this corruption is like ImageNet-C's but not the same.
    """
    # Thickness of the ice, and on it needles: noise drawn out in three directions.
    thickness = plasma(1 << (len(x) - 1).bit_length(), 1.6, rng)[: len(x), : len(x), None]
    reach = max(1, len(x) // 20)
    noise = rng.random((3, *x.shape[:2], 1), dtype=np.float32) ** 8
    needles = [streak(flakes, reach, reach, angle) for flakes, angle in zip(noise, rng.uniform(0, 180, 3), strict=True)]
    crystals = np.maximum.reduce(needles)
    ice = 0.8 * thickness + 0.8 * crystals / crystals.max() - 0.1
    dark, white = np.array([0.14, 0.30, 0.37]), np.array([0.86, 0.90, 0.93])
    return (keep * x + strength * (dark + (white - dark) * ice)).astype(np.float32)


def fog(x: Pixels, rng: np.random.Generator, strength: float, decay: float) -> Pixels:
    """Haze whose thickness is a plasma fractal; the brightest value of the image stays where it is."""
    haze = plasma(1 << (len(x) - 1).bit_length(), decay, rng)[: len(x), : len(x), None]
    brightest = x.max()
    return ((x + strength * haze) * brightest / (brightest + strength)).astype(np.float32)


def plasma(size: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random height map (size, size), a power of two, from 0 to 1, by the diamond-square algorithm on a torus.

    Each level of detail has 1 / decay² of the amplitude of the one above.
    """
    heights = np.zeros((size, size))
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        down, right = corners + np.roll(corners, -1, 0), corners + np.roll(corners, -1, 1)
        noise = amplitude * rng.uniform(-1, 1, size=(3, *corners.shape))
        centres = (down + np.roll(down, -1, 1)) / 4 + noise[0]
        heights[half::step, half::step] = centres
        heights[half::step, ::step] = (down + centres + np.roll(centres, 1, 1)) / 4 + noise[1]
        heights[::step, half::step] = (right + centres + np.roll(centres, 1, 0)) / 4 + noise[2]
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: Pixels, rng: np.random.Generator, amount: float) -> Pixels:
    """The value of hue, saturation and value raised by `amount`, to 1 at most."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(amount), 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def contrast(x: Pixels, rng: np.random.Generator, factor: float) -> Pixels:
    """Each channel drawn to its mean, until `factor` of the contrast is left."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * np.float32(factor) + mean


def elastic_transform(x: Pixels, rng: np.random.Generator, shift: float, smoothness: float, affine: float) -> Pixels:
    """A random affine map that moves three points by up to `affine`, and local displacements, `shift` times smoothed
    noise; all in pixels. Both at once, with one interpolation where the original has two.
    """
    size = len(x)
    middle, reach = size // 2, size // 3
    points = np.array([[middle + reach, middle + reach], [middle - reach, middle + reach], [middle - reach] * 2], float)
    moved = points + rng.uniform(-affine, affine, size=points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # (3, 2): from (row, column, 1) to where it came from
    noise = rng.uniform(-1, 1, size=(2, size, size))
    local = [shift * ndimage.gaussian_filter(axis, smoothness, mode="reflect", truncate=3) for axis in noise]
    places = np.mgrid[:size, :size] + np.array(local)
    rows, columns = np.tensordot(back[:2].T, places, axes=1) + back[2][:, None, None]
    channels = [ndimage.map_coordinates(x[:, :, c], (rows, columns), order=1, mode="mirror") for c in range(3)]
    return np.stack(channels, axis=2)


def pixelate(x: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """Reduced to `share` of the size and enlarged again, by boxes."""
    small = int(len(x) * share)
    boxes = _to_image(x).resize((small, small), Image.Resampling.BOX).resize(x.shape[:2], Image.Resampling.BOX)
    return np.asarray(boxes, dtype=np.float32) / np.float32(255)


def jpeg_compression(x: Pixels, rng: np.random.Generator, quality: int) -> Pixels:
    """Saved as JPEG and read again."""
    file = io.BytesIO()
    _to_image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), dtype=np.float32) / np.float32(255)


def _to_image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


FUNCTIONS: dict[str, Callable[..., Pixels]] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}


def corrupt(image: NDArray[np.uint8], kind: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square image (S, S, 3) uint8, as the model would see it, corrupted. The same generator state, the same image.

    severity: 1 to 5, with the constants of the published size that is nearest to S.
    """
    x = image.astype(np.float32) / 255
    corrupted = FUNCTIONS[kind](x, rng, *arguments(kind, severity, len(x)))
    return np.rint(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)
