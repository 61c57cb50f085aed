import numpy as np
import pytest
import torch

from diffclip.analysis import grounding
from diffclip.data.sources import Example
from diffclip.errors import UserError


def reference(relevance, mask):
    """Both scores pixel by pixel: each pixel has its patch's relevance, spread evenly."""
    height, width = mask.shape
    rows, columns = relevance.shape
    pixels = np.array(
        [[relevance[y * rows // height, x * columns // width] for x in range(width)] for y in range(height)]
    )
    pointing = mask[pixels == pixels.max()].mean()
    energy = pixels[mask].sum() / pixels.sum() if pixels.sum() > 0 else mask.mean()
    return pointing, energy, mask.mean()


def test_scores_equal_counting_pixels():
    generator = np.random.default_rng(0)
    maps = generator.random((20, 4, 4)) ** 4
    maps[3] = 0
    maps[4] = np.round(maps[4])  # several best patches
    masks = generator.random((20, 16, 16)) < 0.3
    masks[7] = False
    found = grounding.scores(torch.from_numpy(maps), torch.from_numpy(masks))
    for row, relevance, mask in zip(found.tolist(), maps, masks, strict=True):
        assert row == pytest.approx(reference(relevance, mask))


class Dots:
    """16×16 images with a white quarter; quarter q of image q % 4. Every fifth image names nothing."""

    name = "dots"

    def __len__(self):
        return 10

    def mask(self, index):
        mask = np.zeros((16, 16), bool)
        row, column = divmod(index % 4, 2)
        mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
        return mask

    def __getitem__(self, index):
        return Example(np.repeat(np.uint8(255) * self.mask(index)[..., None], 3, axis=2))

    def masks(self, index):
        return [] if index % 5 == 4 else [("a dot", self.mask(index)), ("nothing", ~self.mask(index))][: 1 + index % 2]


class Model(torch.nn.Module):
    """Only what `measure` asks for besides `relevance`."""

    class config:
        image_size, resize, context_length = 16, "shortest", 8
        image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def looks_at_the_dot(model, pixels, tokens):
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), 2)


def test_a_perfect_map_scores_one_on_the_dot_and_zero_off_it(monkeypatch):
    monkeypatch.setattr(grounding, "relevance", looks_at_the_dot)
    progress = []
    found = grounding.measure(Model(), Dots(), batch_size=4, on_progress=progress.append)
    assert progress == [4, 8, 10]
    assert found.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    # Odd images have a second phrase, for all but the dot, which the map misses: half.
    expected = [1.0 if i % 2 == 0 else 0.5 for i in found.indices.tolist()]
    assert found.values["pointing_game"].tolist() == pytest.approx(expected)
    assert found.values["energy_in_mask"].tolist() == pytest.approx(expected)
    assert found.chance["pointing_game"] == pytest.approx((4 * 1 / 4 + 4 * 1 / 2) / 8)
    assert grounding.measure(Model(), Dots(), images=3).indices.tolist() == [0, 1, 2]


def test_nothing_to_find_is_told(monkeypatch):
    monkeypatch.setattr(Dots, "masks", lambda self, index: [])
    with pytest.raises(UserError, match="dots names nothing in its first 10 images"):
        grounding.measure(Model(), Dots())
