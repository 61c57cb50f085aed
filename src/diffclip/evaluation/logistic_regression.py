"""Multinomial logistic regression by L-BFGS, all classes at once, on features that may be many.

The problem is scikit-learn's: the least mean cross-entropy + ‖W‖² / (2 C N), features as they are, intercept
free. It is solved in other coordinates, in which it is the same problem but far better conditioned: features
are centred (the intercept takes up the difference) and rotated to their principal axes (which leaves ‖W‖
alone), and each weight is divided by the root of its approximate curvature. That takes several times fewer
passes over the features than L-BFGS in the given coordinates. docs/numerics.md has the details.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Logits (examples × classes) that are held at a time; three temporaries have this size.
BLOCK = 2**22
# What a curvature may be below the mean of all, so that directions of no variance are not scaled without bound.
FLOOR = 1e-4


@dataclass(frozen=True)
class Axes:
    """A centre and principal axes: coordinates in which logistic regression is well conditioned."""

    mean: Tensor
    """(D,)"""
    basis: Tensor
    """(D, D), one axis a column."""
    variance: Tensor
    """(D,) along each axis."""

    @classmethod
    def of(cls, features: Tensor) -> "Axes":
        """The axes of features (N, D)."""
        count, dim = features.shape
        blocks = torch.split(features, max(1, BLOCK // dim))
        total = sum(block.sum(dim=0, dtype=torch.float64) for block in blocks)
        mean = torch.as_tensor(total / count).to(features.dtype)
        scatter = torch.zeros(dim, dim, dtype=torch.float64)
        for block in blocks:
            centred = block - mean
            scatter += (centred.T @ centred).cpu()
        variance, basis = torch.linalg.eigh(scatter / count)
        return cls(mean, basis.to(mean), variance.clamp(min=0).to(mean))

    def rotate_(self, features: Tensor) -> Tensor:
        """Put features (N, D) into these coordinates, in place, and return them."""
        for block in torch.split(features, max(1, BLOCK // len(self.mean))):
            block.copy_((block - self.mean) @ self.basis)
        return features


@dataclass(frozen=True)
class Weights:
    """A linear classifier in the coordinates of some axes."""

    weight: Tensor
    """(D, K)"""
    bias: Tensor
    """(K,); −∞ for a class that the data did not have."""
    curvature: Tensor
    """(K,), the mean over examples of p (1 − p): where the next, similar problem starts from."""

    @classmethod
    def prior(cls, axes: Axes, labels: Tensor, classes: int) -> "Weights":
        """The classifier that knows how frequent each class is, and nothing else."""
        share = (torch.bincount(labels, minlength=classes).double() / len(labels)).to(axes.mean.dtype)
        return cls(share.new_zeros(len(axes.mean), classes), share.log(), share * (1 - share))

    def predict(self, features: Tensor) -> Tensor:
        """The most probable class of each of (N, D) features: (N,) int64. Of equal ones the first."""
        blocks = torch.split(features, max(1, BLOCK // len(self.bias)))
        return torch.cat([torch.addmm(self.bias, block, self.weight).argmax(dim=1) for block in blocks])

    def unrotated(self, axes: Axes) -> "Weights":
        """The same classifier for features as they were before `axes.rotate`."""
        weight = axes.basis @ self.weight
        bias = self.bias.double() - axes.mean.double() @ weight.double()
        return Weights(weight, bias.to(weight.dtype), self.curvature)


class _Converged(Exception):
    """The gradient is small enough."""


@torch.no_grad()
def fit(
    axes: Axes,
    features: Tensor,
    labels: Tensor,
    C: float,
    start: Weights,
    *,
    tol: float = 1e-5,
    max_iter: int = 1000,
) -> Weights:
    """Minimise mean cross-entropy + ‖W‖² / (2 C N), by L-BFGS from `start`.

    features (N, D): in the coordinates of `axes`. labels (N,) int64 in [0, K). A class without an example
    must have the bias −∞ in `start`, and keeps it: it takes no part. As scikit-learn does, it stops when no
    entry of the gradient, in the features' own coordinates, exceeds tol, or after max_iter iterations; tol
    shrinks with features whose root mean square is below 1. Its default is a tenth of scikit-learn's: a
    start from a similar problem's solution may meet that one before it has taken a step.
    """
    count = len(features)
    penalty = 1 / (C * count)
    if start.bias.isfinite().sum() == 2:
        penalty *= 2  # scikit-learn's binary model penalises one vector, the difference of these two
    rms = axes.variance.mean().sqrt().item()
    enough = max(tol * min(1.0, rms), 16 * torch.finfo(features.dtype).eps * rms)
    targets = labels[:, None]
    curvature = start.curvature.clamp(min=FLOOR * start.curvature.mean())
    variance = axes.variance + FLOOR * axes.variance.mean()
    # Parameters are divided by these, bias last: (D + 1, K).
    scale = torch.cat([variance[:, None] * curvature + penalty, curvature[None]]).rsqrt()
    parameters = torch.nn.Parameter(torch.cat([start.weight, start.bias[None]]) / scale)
    seen = {"curvature": start.curvature}

    @torch.no_grad()
    def closure() -> float:
        weight, bias = torch.split(parameters * scale, [len(scale) - 1, 1])
        loss, gradient, seen["curvature"] = _cross_entropy(features, targets, weight, bias[0])
        loss += penalty / 2 * float(weight.square().sum(dtype=torch.float64))
        gradient[:-1] += penalty * weight
        own = torch.addr(axes.basis @ gradient[:-1], axes.mean, gradient[-1])
        if max(own.abs().max().item(), gradient[-1].abs().max().item()) <= enough:
            raise _Converged
        parameters.grad = gradient * scale
        return loss

    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iter,
        tolerance_grad=0,  # the closure looks at the gradient in the coordinates that count
        tolerance_change=1e-2 * torch.finfo(features.dtype).eps,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    try:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        if optimizer.state[parameters]["n_iter"] >= max_iter:
            log.warning("logistic regression with C = %g did not converge in %d iterations", C, max_iter)
    except _Converged:
        pass
    weight, bias = torch.split(parameters.detach() * scale, [len(scale) - 1, 1])
    return Weights(weight, bias[0], seen["curvature"])


def _cross_entropy(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
    """Mean cross-entropy, its gradient (D + 1, K), bias last, and each class's mean p (1 − p), (K,)."""
    gradient = weight.new_zeros(len(weight) + 1, len(bias))
    squares = torch.zeros_like(bias)
    loss = weight.new_zeros((), dtype=torch.float64)
    rows = max(1, BLOCK // len(bias))
    for x, y in zip(torch.split(features, rows), torch.split(targets, rows), strict=True):
        p = torch.log_softmax(torch.addmm(bias, x, weight), dim=1)  # (rows, K)
        loss -= p.gather(1, y).sum(dtype=torch.float64)
        p.exp_()
        squares += torch.linalg.vector_norm(p, dim=0).square()
        gradient[-1] += p.sum(dim=0)
        p.scatter_add_(1, y, p.new_full((1, 1), -1.0).expand(len(y), 1))
        gradient[:-1].addmm_(x.T, p)
    share = gradient[-1] / len(features)
    curvature = share - squares / len(features)
    gradient[-1] -= torch.bincount(targets[:, 0], minlength=len(bias))
    return loss.item() / len(features), gradient / len(features), curvature
