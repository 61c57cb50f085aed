"""Muon in the precision of a run: torch's computes in bfloat16, which many processors emulate, slowly."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x³ + c x⁵, five rounds of which take singular values from 0.01 to 1 near 1 (Jordan et al.)."""
ROUNDS = 5
LENGTH = 0.2
"""Root mean square of a step in units of the learning rate, as AdamW's is (Liu et al. 2025)."""


class Muon(torch.optim.Muon):
    """torch.optim.Muon with adjust_lr_fn="match_rms_adamw", and with a choice of what it is computed in.

    Parameters are matrices. dtype: of the products; in bfloat16 the same to the bit as torch's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, *, dtype: torch.dtype) -> None:
        super().__init__(groups, lr=lr, adjust_lr_fn="match_rms_adamw")
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # none of ours has a closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(momentum, group["momentum"]), self._dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * (LENGTH * math.sqrt(max(parameter.shape))))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(m, n) → (m, n) of `dtype`: nearly U Vᵀ of the matrix's U S Vᵀ, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
