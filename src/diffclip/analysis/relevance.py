"""What the attention of all layers adds up to for a text: relevance, by Chefer et al. 2021."""

import torch
from torch import Tensor

from diffclip.models.clip import evaluation_mode
from diffclip.models.image_text import ImageTextModel


def relevance(model: ImageTextModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """What each image patch adds to the score of its image-text pair: (B, rows, columns) float ≥ 0.

    pixels (B, 3, S, S) float, normalised; tokens (B, L) int64, one text an image. After Chefer et al. 2021
    ("Generic Attention-model Explainability", arXiv 2103.15679: its rule for self-attention, applied to the
    image tower), as in the DiffCLIP paper's Figure 2. s is the cosine of the pair. A is the map of a block that
    multiplied the values in this very forward pass, (heads, N, N), and ∇A = ∂s/∂A. Then

        Ā = mean over heads of (∇A ⊙ A)⁺
        R ← R + Ā R from the first block to the last, from R = 1,

    read at the class token's row, or the mean of the patches' rows where the model's feature is their mean. In a
    differential layer A is the signed A1 − λ A2. The product ∇A ⊙ A is the first order of what the weight adds to
    s, whatever its sign. So its positive part holds two kinds of patches: attended ones (A > 0) whose values raise
    the score, and subtracted ones (A < 0) whose values would lower it. The map says that a patch matters in favour
    of the text, not in which of these two ways.

    Works in evaluation mode and leaves the model's mode and gradients as they were. Maps of two models are not on one
    scale: compare places in a map, not sizes between maps. Nor is the rule neutral between the two kinds of attention.
    The RMSNorm of a differential head makes the terms of each of its rows add up to 0: as much is clipped as is kept.
    `occlusion` is neutral, and is the control for such a comparison.
    """
    with evaluation_mode(model), torch.no_grad():
        text = model.encode_text(tokens, normalize=True)  # (B, embed_dim)
    with evaluation_mode(model), torch.enable_grad():
        # From the pixels on, so that there are gradients also where the weights are frozen.
        features, maps = model.image_maps(pixels.detach().requires_grad_())  # (B, embed_dim)
        image = torch.nn.functional.normalize(features, dim=-1)
        attention = [recorded.combined for recorded in maps]  # (B, heads, N, N) each
        # Images of a batch do not see each other: the gradient of the sum holds each pair's own.
        gradients = torch.autograd.grad((image * text).sum(), attention)
    with torch.no_grad():
        total = torch.eye(attention[0].shape[-1], dtype=image.dtype, device=image.device)
        total = total.expand(len(pixels), -1, -1)  # (B, N, N)
        for weights, gradient in zip(attention, gradients, strict=True):
            total = total + (gradient * weights).clamp(min=0).mean(dim=1).to(total.dtype) @ total
        return model.on_patches(total)
