import numpy as np
import pytest
import torch

from diffclip.analysis.occlusion import occlusion
from small_models import EQUATIONS, small_model


def tiny():
    return small_model(size=EQUATIONS, image_size=12, vision_depth=1).double()


TOKENS = torch.tensor([[18, 3, 4, 19, 0], [18, 5, 19, 0, 0], [18, 7, 8, 9, 19]])


@pytest.mark.parametrize("cells", [2, 3, 5])  # 5 cells of 12 pixels are not equally wide
def test_equals_covering_one_cell_of_one_image_at_a_time(cells):
    model = tiny().train()
    pixels = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, owner = pixels.clone(), torch.tensor([1, 0, 1])
    found = occlusion(model, pixels, TOKENS, owner, cells=cells)
    assert model.training
    assert torch.equal(pixels, before)
    assert not found.requires_grad
    model.eval()
    borders = [round(i * 12 / cells) for i in range(cells + 1)]
    expected = np.zeros((3, cells, cells))
    for text in range(3):
        image = pixels[owner[text]].detach().numpy()
        feature = model.encode_text(TOKENS[text : text + 1])[0].detach().numpy()

        def cosine(picture, feature=feature):
            seen = model.encode_image(torch.from_numpy(picture)[None])[0].detach().numpy()
            return seen @ feature / np.linalg.norm(seen) / np.linalg.norm(feature)

        for row in range(cells):
            for column in range(cells):
                covered = image.copy()
                for channel in range(3):
                    rows, columns = slice(*borders[row : row + 2]), slice(*borders[column : column + 2])
                    covered[channel, rows, columns] = image[channel].mean()
                expected[text, row, column] = max(0.0, cosine(image) - cosine(covered))
    assert (expected > 0).any()
    assert (expected == 0).any()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_without_owners_text_i_belongs_to_image_i():
    model, pixels = tiny(), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(
        occlusion(model, pixels, TOKENS, cells=3), occlusion(model, pixels, TOKENS, torch.arange(3), cells=3)
    )


def test_an_even_image_has_nothing_to_miss():
    assert (occlusion(tiny(), torch.ones(3, 3, 12, 12, dtype=torch.float64), TOKENS, cells=3) < 1e-12).all()
