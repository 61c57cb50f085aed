"""AdamW with decay on matrices only, its moments in 32 bits or in 8, and the learning rate of every step."""

import logging
import math
from typing import Any

import torch

from diffclip.config import Optimizer
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.library import Trainable

# Of bitsandbytes: smaller tensors keep moments of 32 bits, larger ones have a scale for so many numbers.
_SMALL, _BLOCK = 4096, 256


def adamw(model: Trainable, config: Optimizer) -> torch.optim.Optimizer:
    """AdamW: parameters of two or more dimensions decay, biases, norms, λ and the temperature do not.

    The released model's training decides by the number of dimensions too; a class token of shape (1, 1, width) decays.
    Of the kind `adamw_8bit` (Dettmers et al. 2022; bitsandbytes) the moments of matrices are kept in 8 bits, each block
    of 256 with a scale; those of small tensors and of the token embedding, whose rows have gradients of very different
    sizes, stay in 32. Raises UserError where bitsandbytes is not installed.
    """
    named = dict(model.named_parameters())
    decaying = [p for name, p in named.items() if p.ndim >= 2 and not is_lambda(name)]
    undecayed = [p for name, p in named.items() if p.ndim < 2 or is_lambda(name)]
    others = {"params": undecayed, "weight_decay": 0.0}
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.kind == "adamw":
        return torch.optim.AdamW(
            [{"params": decaying, "weight_decay": config.weight_decay}, others], **settings, fused=True
        )
    assert isinstance(model, CLIP)  # the recipe was checked
    embedding = model.text.token_embedding.weight
    matrices = {"params": [p for p in decaying if p is not embedding], "weight_decay": config.weight_decay}
    exact = {"params": [embedding], "weight_decay": config.weight_decay, "bits": 32}
    optimizer: torch.optim.Optimizer = _adamw_8bit()([matrices, others, exact], **settings)
    return optimizer


def is_lambda(name: str) -> bool:
    """Whether a parameter makes λ or a gate. In some forms it is a matrix, and decay would pull λ to one value."""
    return ".lambda_" in name or ".gate_proj." in name


def _adamw_8bit() -> Any:
    """bitsandbytes' AdamW8bit, whose groups may state their `bits`."""
    # It warns of a kernel for matrices in 4 bits, which is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "optimizer.kind = \"adamw_8bit\" needs the bitsandbytes library: pip install 'diffclip[8bit]'"
        ) from None

    class ByGroup(AdamW8bit):  # type: ignore[misc]  # its library has no types
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = super().get_config(gindex, pindex, group)
            return found | {"optim_bits": group.get("bits", found["optim_bits"])}

    return ByGroup


def moment_bytes(model: CLIP, config: Optimizer) -> int:
    """Bytes of both moments of all parameters; `model` may be on the meta device."""
    total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if config.kind == "adamw" or count < _SMALL or parameter is model.text.token_embedding.weight:
            total += 2 * 4 * count
        else:
            total += 2 * (count + 4 * math.ceil(count / _BLOCK))
    return total


def learning_rate(step: int, *, steps: int, warmup_steps: int, config: Optimizer) -> float:
    """Learning rate of step 0 ≤ `step` < `steps`.

    Linear from `warmup_lr` to `lr` over `warmup_steps`, then half a cosine to `final_lr`, which the step after the
    last would have.
    """
    if step < warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
