"""An exponential moving average of the weights, which stands in for them where a model is judged or kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from diffclip.training.parallel import local_tensor


class WeightAverage:
    """θ̄ ← d·θ̄ + (1 − d)·θ after every step, θ̄ being the weights themselves at the start.

    d = min(decay, (1 + t)/(10 + t)) after step t = 1, 2, …: few steps have little past to average, and the weights
    that training began with are soon forgotten. d is a function of the step, so that only θ̄ has to be kept.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After step number `step`, counted from 1."""
        averages = [local_tensor(tensor) for tensor in self.tensors.values()]
        weights = [local_tensor(parameter.detach()) for _, parameter in model.named_parameters()]
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside the `with` the model has the averaged weights, and afterwards its own, to the bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            own = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(own)
