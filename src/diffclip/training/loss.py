"""The losses, in float32 whatever the features are, and their gradients in the features of a batch on several ranks.

Each rank computes the loss of its own rows among the features of all: gather → backward_by_rows → scatter_gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.distributed import World

# Logits that exist at a time: rows × columns, 8 MiB in float32.
LOGITS = 2**21

Outputs = dict[str, Tensor]
"""CLIP.forward's: "image_features" and "text_features" (·, embed_dim), normalised, and scalars."""


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


@dataclass(frozen=True)
class Pairing:
    """Which captions belong to the images of a batch of B."""

    place: Tensor | None = None
    """(B,) int64: the caption of each image among those encoded; None where there are B, in order."""
    groups: Tensor | None = None
    """(B,) int64: equal for equal captions; None where every caption stands for itself."""


@dataclass(frozen=True)
class GlobalFeatures:
    """The outputs of all ranks, a caption for each image, as leaves of a graph of their own."""

    outputs: Outputs
    groups: Tensor | None


def gather(outputs: Outputs, pairing: Pairing, world: World) -> GlobalFeatures:
    """This rank's outputs (b, embed_dim) → those of all ranks (B, embed_dim); scalars stay as they are."""
    leaves = {}
    for name, output in outputs.items():
        rows = output.detach()
        if name == "text_features" and pairing.place is not None:
            rows = rows[pairing.place]  # captions that were encoded once → one for each image
        leaves[name] = (rows if rows.ndim == 0 else world.all_gather(rows)).requires_grad_()
    return GlobalFeatures(leaves, None if pairing.groups is None else world.all_gather(pairing.groups))


def backward_by_rows(loss_of: Loss, gathered: GlobalFeatures, world: World) -> float:
    """The loss of the whole batch. The gradient of this rank's share is added to the `grad` of each gathered output.

    It goes over this rank's rows, as many at a time as keep the logits, with a column for each of the B, small.
    """
    every = len(gathered.outputs["image_features"])
    size = every // world.size
    first, height = world.rank * size, max(1, LOGITS // every)
    shares = []
    with torch.enable_grad():
        for row in range(first, first + size, height):
            rows = slice(row, min(first + size, row + height))
            share = loss_of(gathered.outputs, gathered.groups, rows) * ((rows.stop - rows.start) / size)
            share.backward()  # type: ignore[no-untyped-call]
            shares.append(share.detach())
    return float(world.mean(torch.stack(shares).sum()))


def scatter_gradients(gathered: GlobalFeatures, outputs: Outputs, pairing: Pairing, world: World) -> list[Tensor]:
    """`world.size` times the loss's gradient in each of this rank's outputs, in their shapes: the inverse of `gather`.

    A rank's features get, by a reduce-scatter, what the rows of every rank lose by them. The mean over ranks, which the
    layout takes of the weights' gradients, makes them those of the whole batch.
    """
    gradients = []
    for (name, leaf), output in zip(gathered.outputs.items(), outputs.values(), strict=True):
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if leaf.ndim:
            gradient = world.reduce_scatter(gradient)
        if name == "text_features" and pairing.place is not None:
            gradient = torch.zeros_like(output).index_add_(0, pairing.place, gradient)  # a caption's, over its images
        gradients.append(gradient)
    return gradients


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
