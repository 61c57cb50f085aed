"""Where a model looks for a text, without a word about its attention: what it misses when a part is covered."""

from itertools import pairwise, product

import torch
from torch import Tensor

from diffclip.models.clip import evaluation_mode
from diffclip.models.image_text import ImageTextModel

CELLS = 8


def occlusion(
    model: ImageTextModel, pixels: Tensor, tokens: Tensor, image_of_text: Tensor | None = None, *, cells: int = CELLS
) -> Tensor:
    """By how much the score of a pair falls when a part of the image is covered: (T, cells, cells) float ≥ 0.

    pixels (B, 3, S, S) float, normalised; tokens (T, L) int64; image_of_text (T,) int64, the image of each text, and
    without it text i belongs to image i. s is the cosine of the pair. x_p is the image with one cell p, of a
    cells × cells grid, filled with the image's mean colour: (s(x) − s(x_p))⁺ (Zeiler & Fergus 2014, "Visualizing and
    Understanding Convolutional Networks"). It asks nothing of how the model is built, and so is the same question to
    every kind of attention; it costs cells² + 1 passes an image, whatever the number of its texts.

    Works in evaluation mode and leaves the model's mode as it was.
    """
    if image_of_text is None:
        image_of_text = torch.arange(len(tokens), device=pixels.device)
    edges = torch.linspace(0, pixels.shape[-1], cells + 1).round().int().tolist()
    spans = [slice(start, end) for start, end in pairwise(edges)]
    mean = pixels.mean(dim=(2, 3), keepdim=True)  # (B, 3, 1, 1)
    with evaluation_mode(model), torch.no_grad():
        text = model.encode_text(tokens, normalize=True)  # (T, embed_dim)
        views = [model.encode_image(pixels, normalize=True)]
        for down, across in product(spans, spans):
            covered = pixels.clone()
            covered[..., down, across] = mean
            views.append(model.encode_image(covered, normalize=True))
        seen = torch.stack(views)[:, image_of_text]  # (1 + cells², T, embed_dim)
        score = (seen * text).sum(-1)  # (1 + cells², T)
    return (score[0] - score[1:]).clamp(min=0).T.reshape(len(tokens), cells, cells)
