"""AdamW with decay on matrices only, and the learning rate of every step."""

import math

import torch
from torch import nn

from diffclip.config import Optimizer


def adamw(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW over two groups: parameters of two or more dimensions decay, biases, norms, λ and the temperature do not.

    The released model's training decides by the number of dimensions too; a class token of shape (1, 1, width) decays.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, *, steps: int, warmup_steps: int, config: Optimizer) -> float:
    """Learning rate of step 0 ≤ `step` < `steps`.

    Linear from `warmup_lr` to `lr` over `warmup_steps`, then half a cosine to `final_lr`, which the step after the
    last would have.
    """
    if step < warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
