"""The contrastive loss of CLIP (Radford et al. 2021), in float32 whatever the features are."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """½·[CE(s·I·Tᵀ) + CE(s·T·Iᵀ)], row i's answer being column i.

    image_features, text_features: (B, embed_dim), normalised. logit_scale: the scalar s, not its logarithm.
    groups: (B,) integers, equal for equal captions. The columns of a row's group are then all its answer, in equal
    parts, so that a caption which is right for several images of a batch is a negative for none of them (the unified
    contrastive loss of Yang et al. 2022, arXiv 2204.03610). Returns a float32 scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale.float() * image_features.float() @ text_features.float().T  # (B, B)
        if groups is None:
            target = torch.arange(len(logits), device=logits.device)
        else:
            shared = (groups[:, None] == groups[None, :]).float()  # (B, B), symmetric
            target = shared / shared.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
