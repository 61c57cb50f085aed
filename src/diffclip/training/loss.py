"""The contrastive loss of CLIP (Radford et al. 2021), in float32 whatever the features are."""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(Protocol):
    """A loss of a whole batch of pairs, computed for some of its rows at a time.

    It is a mean over rows, an image and its caption each, of what they lose among all images and captions. So the mean
    over rows of one process, or over a block of rows that fits into memory, is a share of the same number.
    """

    def __call__(self, outputs: Mapping[str, Tensor], groups: Tensor | None, rows: slice) -> Tensor:
        """The mean over `rows`, a float32 scalar.

        outputs: CLIP.forward's, of the whole batch: "image_features" and "text_features" (B, embed_dim), normalised,
        and scalars such as "logit_scale". What the loss itself learns is one of these scalars.
        groups: (B,) integers, equal for equal captions, or None where every caption stands for itself.
        """


def contrastive(outputs: Mapping[str, Tensor], groups: Tensor | None, rows: slice) -> Tensor:
    """contrastive_loss as a Loss."""
    return contrastive_loss(
        outputs["image_features"], outputs["text_features"], outputs["logit_scale"], groups, rows=rows
    )


def sigmoid(outputs: Mapping[str, Tensor], groups: Tensor | None, rows: slice) -> Tensor:
    """sigmoid_loss as a Loss."""
    return sigmoid_loss(
        outputs["image_features"],
        outputs["text_features"],
        outputs["logit_scale"],
        outputs["logit_bias"],
        groups,
        rows=rows,
    )


LOSSES: Mapping[str, Loss] = {"contrastive": contrastive, "sigmoid": sigmoid}


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
    *,
    rows: slice = slice(None),
) -> Tensor:
    """−Σ_j log σ(z_ij (s·I_i·T_j + b)) averaged over images i, z being 1 for an image's own caption and −1 for others.

    Every pair is a question of its own, so that no sum over the batch is taken ("Sigmoid Loss for Language Image
    Pre-Training", Zhai et al. 2023, arXiv 2303.15343, eq. 1). b, learned, starts low: of B² pairs only B are right.
    Shapes, groups and rows are those of contrastive_loss; z is 1 for all captions of an image's group. Returns a
    float32 scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = logit_scale.float() * image_features.float(), text_features.float()
        logits = image[rows] @ text.T + logit_bias.float()  # (R, B)
        of = torch.arange(len(image), device=image.device) if groups is None else groups
        right = of[rows, None] == of[None, :]  # (R, B)
        return -F.logsigmoid(torch.where(right, logits, -logits)).sum(dim=1).mean()


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    groups: Tensor | None = None,
    *,
    rows: slice = slice(None),
) -> Tensor:
    """½·[CE(s·I·Tᵀ) + CE(s·T·Iᵀ)], row i's answer being column i.

    image_features, text_features: (B, embed_dim), normalised. logit_scale: the scalar s, not its logarithm.
    groups: (B,) integers, equal for equal captions. The columns of a row's group are then all its answer, in equal
    parts, so that a caption which is right for several images of a batch is a negative for none of them (the unified
    contrastive loss of Yang et al. 2022, arXiv 2204.03610). rows: the R rows that the mean is taken over, each among
    all columns. Returns a float32 scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = logit_scale.float() * image_features.float(), text_features.float()
        if groups is None:
            target = torch.arange(len(image), device=image.device)[rows]  # (R,)
        else:
            shared = (groups[rows, None] == groups[None, :]).float()  # (R, B)
            target = shared / shared.sum(dim=1, keepdim=True)
        of_images = F.cross_entropy(image[rows] @ text.T, target)
        return (of_images + F.cross_entropy(text[rows] @ image.T, target)) / 2
