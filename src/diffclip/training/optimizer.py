"""AdamW with decay on matrices only, its moments in 32 bits or in 8; Muon; and the learning rate of every step."""

import logging
import math
import re
from typing import Any

import torch
from torch import Tensor

from diffclip.config import Optimizer, Tuning
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.library import Trainable
from diffclip.training.muon import Muon
from diffclip.training.tuning import is_lambda, rate_of

# Of bitsandbytes: smaller tensors keep moments of 32 bits, larger ones have a scale for so many numbers.
_SMALL, _BLOCK = 4096, 256
_IN_BLOCK = re.compile(r"\.(?:blocks|layers?)\.\d+\.")


def make_optimizer(
    model: Trainable,
    config: Optimizer,
    tuning: Tuning = Tuning(),  # noqa: B008  frozen
    dtype: torch.dtype | None = None,
) -> torch.optim.Optimizer:
    """AdamW: parameters of two or more dimensions decay, biases, norms, λ and the temperature do not.

    λ and gates never decay, whatever their shape. tuning: the learning rates of parts, kept as "rate" of each group.
    What needs no gradient is left out. The released model's training decides by the number of dimensions too; a class
    token of shape (1, 1, width) decays.
    Of the kind `adamw_8bit` (Dettmers et al. 2022; bitsandbytes) the moments of matrices are kept in 8 bits, each block
    of 256 with a scale; those of small tensors and of the token embedding, whose rows have gradients of very different
    sizes, stay in 32. Raises UserError where bitsandbytes is not installed.
    Of the kind `muon` (Jordan et al. 2024) the matrices of blocks step by their momentum, made nearly
    orthogonal, as far as AdamW would (0.2 a number in root mean square, Liu et al. 2025); the rest is left to AdamW.
    dtype: what the run multiplies in; Muon multiplies in bfloat16 where that is it, and in float32 else.
    """
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = parameter.ndim >= 2 and not is_lambda(name), rate_of(name, tuning)
            groups.setdefault(key, []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "rate": rate}
        for (decays, rate), parameters in groups.items()
        if parameters
    ]
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.kind == "adamw":
        return torch.optim.AdamW(made, **settings, fused=True)
    if config.kind == "muon":
        turned = {id(parameter) for name, parameter in model.named_parameters() if is_turned(name, parameter)}
        matrices = [group | {"params": [p for p in group["params"] if id(p) in turned]} for group in made]
        others = [group | {"params": [p for p in group["params"] if id(p) not in turned]} for group in made]
        return _Together(
            Muon(
                [g for g in matrices if g["params"]],
                config.lr,
                dtype=torch.bfloat16 if dtype is torch.bfloat16 else torch.float32,
            ),
            torch.optim.AdamW([g for g in others if g["params"]], **settings, fused=True),
        )
    assert isinstance(model, CLIP)  # the recipe was checked
    embedding = model.text.token_embedding.weight
    exact: list[dict[str, Any]] = []
    for group in made:  # the embedding has a group of its own
        own = [p for p in group["params"] if p is embedding]
        group["params"] = [p for p in group["params"] if p is not embedding]
        exact += [group | {"params": own, "bits": 32}] if own else []
    kept = [group for group in made if group["params"]]
    optimizer: torch.optim.Optimizer = _adamw_8bit()([*kept, *exact], **settings)
    return optimizer


def is_turned(name: str, parameter: Tensor) -> bool:
    """Whether Muon steps a parameter: a matrix of a block, ours or transformers', that is neither λ nor a gate."""
    return _IN_BLOCK.search(name) is not None and parameter.ndim == 2 and not is_lambda(name)


class _Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one, with one list of groups and one state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # none of ours has a closure
        for part in self._parts:
            part.step()


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
    """Bytes of the moments of all parameters; `model` may be on the meta device."""
    total = 0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        if config.kind == "muon":
            total += (4 if is_turned(name, parameter) else 8) * count
        elif config.kind == "adamw" or count < _SMALL or parameter is model.text.token_embedding.weight:
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
