"""The few numbers that much depends on, which half precision must not round: λ and the temperature.

In bfloat16 λ would move in steps of 0.004, the temperature in steps of 0.5.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*parameters: Tensor) -> Iterator[None]:
    """Parameters that were cast inside the `with` are in float32 at least again, with the values they had before."""
    before = [parameter.data for parameter in parameters]
    yield
    for parameter, values in zip(parameters, before, strict=True):
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if parameter.dtype != dtype:
            parameter.data = values.to(parameter.device, torch.promote_types(values.dtype, dtype))
            if parameter.grad is not None:
                parameter.grad.data = parameter.grad.data.to(parameter.dtype)
