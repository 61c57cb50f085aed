"""Crops and resizing are torchvision's; extreme shapes neither crash nor grow."""

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from diffclip.data.images import decode
from diffclip.data.transforms import EvalTransform, TrainTransform, normalise

RNG = np.random.default_rng(0)


def photo(height, width):
    """Smooth structure and noise, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x / 9 + y / 17)[..., None] * [1, 0.7, -1]
    return np.clip(waves + RNG.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def by_torchvision(transform, image):
    return transform(torch.from_numpy(image).permute(2, 0, 1))


BICUBIC = v2.InterpolationMode.BICUBIC


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (32, 32), (96, 64), (100, 799), (301, 299)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(height, width):
    image = photo(height, width)
    resize = v2.Resize(64, BICUBIC, antialias=True)
    reference = by_torchvision(v2.Compose([resize, v2.CenterCrop(64)]), image)
    assert torch.equal(EvalTransform(64)(image), reference)
    squashed = by_torchvision(v2.Resize((64, 64), BICUBIC, antialias=True), image)
    assert torch.equal(EvalTransform(64, "squash")(image), squashed)


def test_resizing_is_antialiased_and_close_to_exact_arithmetic():
    image = photo(300, 300)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), (64, 64), mode="bicubic", antialias=True
    )[0]
    difference = (EvalTransform(64)(image).double() - exact.clamp(0, 255)).abs()
    assert difference.max() <= 2
    assert difference.mean() < 0.5
    stripes = np.repeat(np.where(np.arange(256) % 2, 255, 0).astype(np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    assert (EvalTransform(32)(stripes).int() - 127).abs().max() < 30


def test_from_the_file_to_the_pixels_as_pillow_and_torchvision_do_it():
    """Decoder, crop and resizing beside Pillow's: what differs is the rounding of two ways to resize."""
    file = io.BytesIO()
    Image.fromarray(photo(375, 500)).save(file, "JPEG", quality=90)
    image, transform = decode(file.getvalue()), TrainTransform(224)
    for seed in range(5):
        top, left, height, width = transform.region(375, 500, np.random.default_rng(seed))
        pillow = Image.open(file).convert("RGB")
        reference = v2.functional.resized_crop(pillow, top, left, height, width, [224, 224], BICUBIC, antialias=True)
        ours = transform(image, np.random.default_rng(seed)).permute(1, 2, 0).numpy().astype(int)
        difference = np.abs(ours - np.asarray(reference))
        assert difference.max() <= 4
        assert difference.mean() < 0.4


class Scripted:
    """A generator that gives out prepared numbers."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)

    def integers(self, high):
        return int(next(self.numbers) * high)


def test_a_crop_is_cut_before_it_is_resized():
    """As torchvision's resized_crop: nothing from outside the crop shows at its edges."""
    image = photo(120, 160)
    transform = TrainTransform(48)
    top, left, height, width = transform.region(120, 160, Scripted([0.3, 0.6, 0.5, 0.25]))
    reference = v2.functional.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1), top, left, height, width, [48, 48], BICUBIC, antialias=True
    )
    assert torch.equal(transform(image, Scripted([0.3, 0.6, 0.5, 0.25])), reference)
    image[: top + height // 2, :] = 0
    image[top + height :, :] = 255
    dark = np.zeros_like(image)
    dark[top : top + height, left : left + width] = image[top : top + height, left : left + width]
    assert torch.equal(
        transform(image, Scripted([0.3, 0.6, 0.5, 0.25])), transform(dark, Scripted([0.3, 0.6, 0.5, 0.25]))
    )


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (20, 400), (400, 20), (1, 50)])
def test_crops_are_distributed_as_torchvisions(height, width):
    """Means and spreads of area, aspect ratio and position agree within four standard errors."""
    count, scale, ratio = 3000, (0.2, 1.0), (0.75, 4 / 3)
    ours = TrainTransform(8, scale, ratio)
    rng = np.random.default_rng(1)
    drawn = np.array([ours.region(height, width, rng) for _ in range(count)], dtype=float)
    torch.manual_seed(1)
    image = torch.zeros(3, height, width)
    theirs = v2.RandomResizedCrop(8, scale, ratio)
    made = [theirs.make_params([image]) for _ in range(count)]
    reference = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in made], dtype=float)
    for a, b in zip(_features(drawn), _features(reference), strict=True):
        for x, y in ((a, b), (a**2, b**2)):
            assert abs(x.mean() - y.mean()) <= 4 * np.sqrt((x.var() + y.var()) / count) + 1e-9


def _features(regions):
    top, left, height, width = regions.T
    return top, left, np.log(height * width), np.log(width / height)


sizes = st.integers(1, 3000)
ratios = st.floats(0.1, 10)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32), st.floats(0.01, 1), ratios, ratios)
@example(1, 5, 0, 0.5, 0.1, 0.3)
@example(5, 1, 0, 0.5, 3, 10)
def test_a_region_is_always_inside(height, width, seed, smallest, ratio, other):
    transform = TrainTransform(8, (smallest, 1.0), (min(ratio, other), max(ratio, other)))
    top, left, h, w = transform.region(height, width, np.random.default_rng(seed))
    assert h >= 1
    assert w >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (1, 60_000), (60_000, 1), (3, 20_000)])
def test_extreme_shapes_need_little_memory(height, width):
    image = photo(height, width)
    for transform in (
        lambda x: TrainTransform(224)(x, np.random.default_rng(0)),
        EvalTransform(224),
        EvalTransform(224, "squash"),
    ):
        with torch.profiler.profile(profile_memory=True) as profile:
            pixels = transform(image)
        assert pixels.shape == (3, 224, 224)
        assert pixels.dtype == torch.uint8
        assert max(event.cpu_memory_usage for event in profile.key_averages()) < 50e6


def test_the_same_generator_gives_the_same_pixels_and_flips_half():
    image = photo(40, 40)
    transform = TrainTransform(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5)
    whole = TrainTransform(16, scale=(1.0, 1.0), ratio=(1.0, 1.0))(image, np.random.default_rng(0))
    made = [transform(image, np.random.default_rng(seed)) for seed in range(200)]
    again = [transform(image, np.random.default_rng(seed)) for seed in range(200)]
    assert all(map(torch.equal, made, again))
    flipped = [torch.equal(pixels, whole.flip(-1)) for pixels in made]
    assert all(f != torch.equal(pixels, whole) for f, pixels in zip(flipped, made, strict=True))
    assert 70 < sum(flipped) < 130


def test_normalise_is_the_formula():
    pixels = torch.from_numpy(photo(5, 7)).permute(2, 0, 1)[None]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = normalise(pixels, mean, std)
    assert out.dtype == torch.float32
    for c, y, x in itertools.product(range(3), range(5), range(7)):
        expected = (int(pixels[0, c, y, x]) / 255 - mean[c]) / std[c]
        assert abs(float(out[0, c, y, x]) - expected) < 1e-5
    assert torch.equal(normalise(pixels[0], mean, std), out[0])
    assert torch.equal(normalise(pixels.float(), mean, std), out)
    assert torch.equal(normalise(pixels, mean, std, torch.bfloat16), out.bfloat16())
    assert normalise(pixels.double(), mean, std, torch.float64).dtype == torch.float64
