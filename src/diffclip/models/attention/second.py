"""Second derivatives of operators whose gradients are operators too: by autograd, on PyTorch's own operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_second(gradients: Any, plain: Callable[..., Tensor]) -> None:
    """Give an operator that returns gradients a derivative of its own, which gradient penalties and Hessians need.

    gradients: a custom operator of (grad, *tensors, setting) that returns the gradients of the tensors, or of the first
    of them. plain: the function of (*tensors, setting) whose gradients these are, slow and differentiable.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.setting = inputs
        ctx.save_for_backward(*tensors)
        ctx.count = len(output)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            grad, *tensors = (x.detach().requires_grad_() for x in ctx.saved_tensors)
            first = torch.autograd.grad(plain(*tensors, ctx.setting), tensors[: ctx.count], grad, create_graph=True)
            second = torch.autograd.grad(first, (grad, *tensors), grads, allow_unused=True)
        return *second, None

    gradients.register_autograd(backward, setup_context=setup_context)
