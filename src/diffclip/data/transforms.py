"""From a decoded image to the pixels a model sees: crop, then resize (bicubic, antialiased)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

Transform = Callable[[NDArray[np.uint8], np.random.Generator], torch.Tensor]

MAX_ASPECT = 8


def _pixels(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W), a view


def _resize(
    pixels: torch.Tensor, height: int, width: int, interpolation: str = "bicubic", resizer: str = "torch"
) -> torch.Tensor:
    if resizer == "pillow":
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        resized_image = image.resize((width, height), Image.Resampling[interpolation.upper()])
        return _pixels(np.array(resized_image))
    # In uint8 and on this memory layout torch has vectorised code: a third of Pillow's time on photographs.
    resized: torch.Tensor = functional.resize_image(
        pixels, [height, width], interpolation=InterpolationMode(interpolation), antialias=True
    )
    return resized


@dataclass(frozen=True)
class TrainTransform:
    """A random part of the image, resized to size × size, mirrored with probability `flip`.

    The part follows torchvision's RandomResizedCrop: its share of the area is uniform in `scale`, its aspect
    ratio log-uniform in `ratio`; after ten draws that do not fit, the central part with the nearest allowed
    ratio.
    """

    size: int
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
        """(H, W, 3) uint8 → (3, size, size) uint8. The same generator state gives the same pixels."""
        top, left, height, width = self.region(image.shape[0], image.shape[1], rng)
        pixels = _resize(_pixels(image[top : top + height, left : left + width]), self.size, self.size)
        return pixels.flip(-1) if self.flip > 0 and rng.random() < self.flip else pixels

    def region(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part to be used."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            ratio = math.exp(low + (high - low) * rng.random())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        nearest = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * nearest)), min(height, round(width / nearest))
        w, h = max(w, 1), max(h, 1)
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class ByEpoch:
    """Other sizes in later epochs: (first epoch, transform), the first from epoch 0 on."""

    stages: tuple[tuple[int, TrainTransform], ...]

    def at(self, epoch: int) -> TrainTransform:
        """The one of an epoch."""
        return [transform for first, transform in self.stages if first <= epoch][-1]


def in_epoch(transform: Transform | ByEpoch, epoch: int) -> Transform:
    """What is done in an epoch."""
    return transform.at(epoch) if isinstance(transform, ByEpoch) else transform


@dataclass(frozen=True)
class EvalTransform:
    """The whole image, as far as a square can hold it.

    "shortest" resizes the shorter edge to `size` and keeps the centre. Of an image longer than 8 : 1 only the
    central 8 : 1 is resized, so that an image one pixel wide does not become one a million pixels long.
    "squash" resizes both edges, whatever the aspect ratio. "longest" resizes the longer edge, and fills the rest.
    The other fields are those of diffclip.models.image_settings.ImageSettings.
    """

    size: int
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    resize_to: int | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["torch", "pillow"] = "torch"
    crop: Literal["round", "floor"] = "round"
    fill: int = 0

    def __call__(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """(H, W, 3) uint8 → (3, size, size) uint8."""
        pixels, target = _pixels(image), self.resize_to or self.size
        height, width = image.shape[:2]
        if self.resize == "shortest":
            longest = MAX_ASPECT * min(height, width)
            if max(height, width) > longest:
                height, width = min(height, longest), min(width, longest)
                pixels = functional.center_crop(pixels, [height, width])
            shorter = min(height, width)
            height, width = target * height // shorter, target * width // shorter
        elif self.resize == "squash":
            height, width = target, target
        else:
            ratio = max(height, width) / target
            height, width = max(1, round(height / ratio)), max(1, round(width / ratio))
        return self._centre(_resize(pixels, height, width, self.interpolation, self.resizer)).contiguous()

    def _centre(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, h, w) → (3, size, size), what is missing filled."""
        missing = [max(0, self.size - edge) for edge in pixels.shape[:0:-1]]  # of the width, of the height
        if any(missing):
            before, after = [m // 2 for m in missing], [m - m // 2 for m in missing]
            pixels = functional.pad(pixels, [*before, *after], fill=self.fill)
        margins = [(edge - self.size) / 2 for edge in pixels.shape[1:]]
        top, left = (math.floor(m) if self.crop == "floor" else round(m) for m in margins)
        return pixels[:, top : top + self.size, left : left + self.size]


def shrunk(image: NDArray[np.uint8], shorter_edge: int) -> NDArray[np.uint8]:
    """An image (H, W, 3) uint8 with its shorter edge not longer than `shorter_edge`, its aspect ratio kept."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= shorter_edge:
        return image
    size = round(height * shorter_edge / shorter), round(width * shorter_edge / shorter)
    return _resize(_pixels(image), *size).permute(1, 2, 0).numpy()


@functools.cache  # on a GPU making them anew would wait for it, twice a step
def _constants(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The standard deviations and the means divided by them, (3, 1, 1)."""
    with torch.inference_mode(False):  # or no later gradient could go through them
        deviation = torch.tensor(std, device=device).view(3, 1, 1)
        return deviation, torch.tensor(mean, device=device).view(3, 1, 1) / deviation


def normalise(
    pixels: torch.Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Grey levels (…, 3, H, W), uint8 or float → (value / 255 − mean) / std per channel, given in `dtype`.

    Computed in float32, or in float64 for pixels in float64.
    """
    deviation, shift = _constants(mean, std, pixels.device)
    if pixels.dtype == torch.uint8 and pixels.device.type == "cpu" and pixels.ndim > 3:
        # One image at a time, while it is in the processor's cache: a fifth of the time of a batch at once.
        normalised = torch.empty(pixels.shape, dtype=dtype)
        for image, place in zip(pixels, normalised, strict=True):
            place.copy_(torch.div(image, 255.0 * deviation).sub_(shift))
        return normalised
    return torch.div(pixels, 255.0 * deviation).sub_(shift).to(dtype)
