"""The MLP of a block, which keeps its hidden layer once for the backward pass, and no copy of its weights."""

from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.models.attention.choice import autocast_dtype, is_tracing
from diffclip.models.plain import is_plain


class Mlp(timm.layers.Mlp):  # type: ignore[misc]  # timm is untyped
    """timm's Mlp: fc2(act(fc1(x))), with its parameters and numbers, no dropout.

    Autograd would keep the hidden layer twice: before the activation for the activation's gradient, and after it for
    the second matrix's. Under autocast it would also keep each matrix in low precision. Here the backward pass computes
    the activation and casts the matrices again, which costs far less than a product. Where a module in it was replaced
    or has hooks (adapters, quantisation, parametrisations), all are called one after the other, as timm does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        # torch.compile chooses by itself what to keep, and a trace knows PyTorch's own operators alone.
        by_itself = torch.compiler.is_compiling() or is_tracing()
        if not torch.is_grad_enabled() or by_itself or not self._is_plain():
            plain: Tensor = super().forward(x)
            return plain
        device = x.device.type
        x = x.to(autocast_dtype(device) or x.dtype)
        out: Tensor = _Mlp.apply(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.act)
        return out

    def _is_plain(self) -> bool:
        linear = is_plain(self.fc1, nn.Linear) and is_plain(self.fc2, nn.Linear)
        others = (self.act, self.drop1, self.norm, self.drop2)
        return linear and all(is_plain(module, type(module)) for module in others)


class _Mlp(torch.autograd.Function):
    """act(x @ w1ᵀ + b1) @ w2ᵀ + b2 in the dtype of x, of which x and the hidden layer before act are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, act: nn.Module) -> Tensor:
        hidden = F.linear(x, w1.to(x.dtype), b1.to(x.dtype))  # (…, 4C)
        ctx.save_for_backward(x, hidden, w1, b1, w2)
        ctx.act = act
        return F.linear(act(hidden), w2.to(x.dtype), b2.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, w1, b1, w2 = ctx.saved_tensors
        (grad,) = grads  # (…, C)
        twice = torch.is_grad_enabled()  # of the gradients, gradients will be asked: the hidden layer in the graph of x
        if twice:
            hidden = F.linear(x, w1.to(x.dtype), b1.to(x.dtype))
        with torch.enable_grad():
            hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
            activated = ctx.act(hidden)
        value = activated if twice else activated.detach()
        dw2, db2 = _of_parameters(grad, value, w2) if any(ctx.needs_input_grad[3:5]) else (None, None)
        (dhidden,) = torch.autograd.grad(activated, hidden, grad @ w2.to(x.dtype), create_graph=twice)
        dw1, db1 = _of_parameters(dhidden, x, w1) if any(ctx.needs_input_grad[1:3]) else (None, None)
        dx = dhidden @ w1.to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, dw1, db1, dw2, db2, None


def _of_parameters(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of a linear map of x (…, in) whose output has the gradient grad (…, out)."""
    grad = grad.flatten(0, -2)  # (rows, out)
    return (grad.mT @ x.flatten(0, -2)).to(weight.dtype), grad.sum(0).to(weight.dtype)
