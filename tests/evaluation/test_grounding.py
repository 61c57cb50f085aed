from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from diffclip.data.sources import Example
from diffclip.data.tokenizer import Tokenizer
from diffclip.errors import UserError
from diffclip.evaluation.tasks import grounding
from diffclip.models.image_settings import ImageSettings


def reference(relevance, mask):
    """The scores pixel by pixel: each pixel has its patch's relevance, spread evenly."""
    height, width = mask.shape
    rows, columns = relevance.shape
    pixels = np.array(
        [[relevance[y * rows // height, x * columns // width] for x in range(width)] for y in range(height)]
    )
    pointing = mask[pixels == pixels.max()].mean()
    energy = pixels[mask].sum() / pixels.sum() if pixels.sum() > 0 else mask.mean()
    return pointing, energy, average_precision_score(mask.ravel(), pixels.ravel())


def test_scores_equal_counting_pixels_and_scikit_learns_average_precision():
    generator = np.random.default_rng(0)
    maps = generator.random((20, 4, 4)) ** 4
    maps[3] = 0
    maps[4] = np.round(maps[4])  # several best patches
    maps[5] = np.round(maps[5] * 3)  # ties all over
    masks = generator.random((20, 16, 16)) < 0.3
    masks[7] = True
    masks[8], masks[8, 3, 5] = False, True
    covers = torch.stack([grounding.cover(mask, 4, 4, resize="shortest") for mask in masks])
    found = grounding.scores(torch.from_numpy(maps), covers)
    for row, relevance, mask in zip(found.tolist(), maps, masks, strict=True):
        assert row == pytest.approx(reference(relevance, mask), abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 5), (2, 3)])
def test_chance_is_the_mean_over_all_orders(shape):
    generator = np.random.default_rng(1)
    covers = torch.from_numpy(generator.random((3, *shape)))
    covers[0] = (covers[0] == covers[0].max()).double()
    orders = list(permutations(range(covers[0].numel())))
    maps = torch.tensor(orders).double().view(-1, *shape)
    for cover, found in zip(covers, grounding.chance(covers), strict=True):
        measured = grounding.scores(maps, cover.expand_as(maps)).mean(0).tolist()
        assert found[[0, 2]].tolist() == pytest.approx([measured[0], measured[2]])
        assert found[1] == found[0]  # an even map has the mask's share of its energy


@pytest.mark.parametrize(("height", "width"), [(12, 12), (7, 7), (7, 12), (13, 6), (5, 8)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_cover_is_the_mask_s_share_of_each_patch_of_what_the_model_sees(height, width, resize):
    mask = np.random.default_rng(0).random((height, width)) < 0.4
    # Every pixel as 12 × 12 smaller ones, so that all edges of 4 × 3 patches fall between pixels.
    fine = np.kron(mask, np.ones((12, 12)))
    if resize == "shortest":
        side = 12 * min(height, width)
        top, left = (fine.shape[0] - side) // 2, (fine.shape[1] - side) // 2
        fine = fine[top : top + side, left : left + side]
    expected = [[block.mean() for block in np.split(rows, 3, axis=1)] for rows in np.split(fine, 4, axis=0)]
    np.testing.assert_allclose(grounding.cover(mask, 4, 3, resize=resize).numpy(), expected, atol=1e-12)


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

    config = ImageSettings(image_size=16, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    tokenizer = Tokenizer(8)

    grid = (2, 2)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def looks_at_the_dot(model, pixels, tokens):
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), 2)


def misses_the_dot(model, pixels, tokens, image_of_text):
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), 8)[image_of_text]


@pytest.fixture(autouse=True)
def occluded(monkeypatch):
    monkeypatch.setattr(grounding, "occlusion", misses_the_dot)


def test_a_perfect_map_scores_one_on_the_dot_and_zero_off_it(monkeypatch):
    monkeypatch.setattr(grounding, "relevance", looks_at_the_dot)
    progress = []
    found = grounding.evaluate(Model(), Dots(), batch_size=4, on_progress=progress.append)
    assert progress == [4, 8, 10]
    assert found.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    # Odd images have a second phrase, for all but the dot, which the map misses: half.
    half = [1.0 if i % 2 == 0 else 0.5 for i in found.indices.tolist()]
    assert found.values["pointing_game"].tolist() == pytest.approx(half)
    assert found.values["energy_in_mask"].tolist() == pytest.approx(half)
    # The three patches off the dot are the last of four: all 16·16 pixels are taken before the ranking is right.
    expected = [1.0 if i % 2 == 0 else (1 + 3 / 4) / 2 for i in found.indices.tolist()]
    assert found.values["average_precision"].tolist() == pytest.approx(expected)
    # The map does not depend on the text, so the other phrase's map does as well on a phrase as its own.
    other = found.values[grounding.OTHER_QUERY]
    assert other.isnan().tolist() == [i % 2 == 0 for i in found.indices.tolist()]
    assert other[~other.isnan()].tolist() == pytest.approx([(1 + 3 / 4) / 2] * 4)
    for metric in grounding.METRICS:  # of 64 cells instead of 4 patches, so other equal ones and another chance
        assert found.values[f"{metric}_by_occlusion"].tolist() == pytest.approx(found.values[metric].tolist())
    assert found.chance["energy_in_mask_by_occlusion"] == pytest.approx(found.chance["energy_in_mask"])
    assert found.chance["average_precision_by_occlusion"] < found.chance["average_precision"]
    assert found.chance["pointing_game"] == pytest.approx((4 * 1 / 4 + 4 * 1 / 2) / 8)
    one = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4  # the dot's patch is at any of four places
    three = (3 * (25 / 12) + 6 * (4 - 25 / 12) / 3) / 12
    assert found.chance["average_precision"] == pytest.approx((4 * one + 4 * (one + three) / 2) / 8)
    assert found.chance[grounding.OTHER_QUERY] == pytest.approx((one + three) / 2)
    assert grounding.evaluate(Model(), Dots(), limit=3).indices.tolist() == [0, 1, 2]


def test_what_the_model_does_not_see_and_what_cannot_be_read_is_left_out(monkeypatch, caplog):
    class Wide(Dots):
        def __getitem__(self, index):
            return Example(b"" if index == 2 else np.zeros((16, 40, 3), np.uint8))

        def masks(self, index):
            edge, middle = np.zeros((16, 40), bool), np.zeros((16, 40), bool)
            edge[:, :12], middle[:, 12:20] = True, True  # the central square is columns 12 to 28
            return [("edge", edge)] + ([("middle", middle)] if index < 4 else [])

    def leftmost(model, pixels, tokens):
        return torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(len(pixels), 2, 2)

    monkeypatch.setattr(grounding, "relevance", leftmost)
    found = grounding.evaluate(Model(), Wide())
    assert found.indices.tolist() == [0, 1, 3]
    assert {name: found.metrics[name] for name in grounding.METRICS} == dict.fromkeys(grounding.METRICS, 1.0)
    assert grounding.OTHER_QUERY not in found.metrics
    assert found.metrics["average_precision_by_occlusion"] == pytest.approx(1 / 2)  # of a map of zeros
    assert "dots: 1 of 10 images could not be read" in caplog.text


def test_nothing_to_find_is_told(monkeypatch):
    monkeypatch.setattr(Dots, "masks", lambda self, index: [])
    with pytest.raises(UserError, match="dots names nothing in its first 10 images"):
        grounding.evaluate(Model(), Dots())


def test_a_mask_of_another_size_is_told(monkeypatch):
    monkeypatch.setattr(Dots, "masks", lambda self, index: [("a dot", np.ones((16, 17), bool))])
    with pytest.raises(UserError, match="mask of 'a dot' in example 0 is 16×17 but its image 16×16 pixels"):
        grounding.evaluate(Model(), Dots())
