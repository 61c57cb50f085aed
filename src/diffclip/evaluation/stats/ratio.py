"""A ratio of two sums over examples, as one value an example: the delta method (Cochran 1977, ch. 6)."""

import torch
from torch import Tensor


def ratio_values(y: Tensor, x: Tensor) -> Tensor:
    """(N,) values whose mean is r = Σ y / Σ x, and whose spread over examples is that of r; 0 where Σ x is.

    An example counts r + (y − r x) / mean(x), so what lies below the line is no more taken as known than what lies
    above. Of two models they are paired as other values are: by their difference.
    """
    if x.sum() == 0:
        return torch.zeros_like(y)
    ratio = y.sum() / x.sum()
    return ratio + (y - ratio * x) / x.mean()
