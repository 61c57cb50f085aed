"""The MLP of a block, which keeps its hidden layer once for the backward pass, not twice."""

from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(timm.layers.Mlp):  # type: ignore[misc]  # timm is untyped
    """timm's Mlp: fc2(act(fc1(x))), with its parameters and numbers, no dropout.

    Autograd would keep the hidden layer before the activation, for the gradient of that, and after it, for the
    second matrix's. Here the activation is computed again in the backward pass, which costs far less than a product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        hidden = self.fc1(x)  # (…, 4C)
        if not torch.is_grad_enabled():
            plain: Tensor = self.fc2(self.act(hidden))
            return plain
        # The casts are autocast's own: hidden has its dtype.
        weight, bias = (parameter.to(hidden.dtype) for parameter in (self.fc2.weight, self.fc2.bias))
        out: Tensor = _ActivatedLinear.apply(hidden, weight, bias, self.act)
        return out


class _ActivatedLinear(torch.autograd.Function):
    """act(x) @ weightᵀ + bias, of which x is kept and act(x) is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, act: nn.Module) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.act = act
        return F.linear(act(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            activated = ctx.act(x)
        grad = grads[0].flatten(0, -2)  # (rows, C)
        dweight = grad.mT @ activated.detach().flatten(0, -2)
        (dx,) = torch.autograd.grad(activated, x, (grads[0] @ weight))
        return dx, dweight, grad.sum(0), None
