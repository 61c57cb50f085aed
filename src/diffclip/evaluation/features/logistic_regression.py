"""Multinomial logistic regression by L-BFGS, all classes at once, on features that may be many.

The problem is scikit-learn's: the least mean cross-entropy + ‖W‖² / (2 C N), features as they are, intercept
free. It is solved in other coordinates, in which it is the same problem but far better conditioned. Features
are centred (the intercept takes up the difference) and rotated to their principal axes (which leaves ‖W‖
alone). Each weight is divided by the root of its approximate curvature. L-BFGS then takes a fraction of the
passes over the features that it takes in the given coordinates. docs/numerics.md has the details.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Numbers of features, or of logits, that are worked on at a time. On a CPU the features of a block stay in its
# cache between the two products that need them; a GPU wants larger ones.
BLOCK = {"cpu": 2**19, "other": 2**25}
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
        blocks = _blocks(features)
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
        for block in _blocks(features):
            block.copy_((block - self.mean) @ self.basis)
        return features


def _blocks(features: Tensor, classes: int = 1) -> tuple[Tensor, ...]:
    """Rows of (N, D) features, few enough that they and their logits are a block."""
    block = BLOCK["cpu" if features.device.type == "cpu" else "other"]
    return torch.split(features, max(1, block // max(features.shape[1], classes)))


@dataclass(frozen=True)
class Weights:
    """A linear classifier in the coordinates of some axes."""

    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,); −∞ for a class that the data did not have."""
    curvature: Tensor
    """(K,), the mean over examples of p (1 − p): where the next, similar problem starts from."""

    def towards(self, other: "Weights", share: float) -> "Weights":
        """What lies between two classifiers, `share` of the way to the other, 0 < share < 1."""
        # Not torch.lerp, which makes NaN of −∞ and −∞.
        return Weights(
            (1 - share) * self.weight + share * other.weight,
            (1 - share) * self.bias + share * other.bias,
            (1 - share) * self.curvature + share * other.curvature,
        )

    @classmethod
    def prior(cls, axes: Axes, labels: Tensor, classes: int) -> "Weights":
        """The classifier that knows how frequent each class is, and nothing else."""
        share = (torch.bincount(labels, minlength=classes).double() / len(labels)).to(axes.mean.dtype)
        return cls(share.new_zeros(classes, len(axes.mean)), share.log(), share * (1 - share))

    def predict(self, features: Tensor) -> Tensor:
        """The most probable class of each of (N, D) features: (N,) int64. Of equal ones the first."""
        blocks = _blocks(features, len(self.bias))
        return torch.cat([torch.addmm(self.bias, block, self.weight.T).argmax(dim=1) for block in blocks])

    def rotate_back(self, axes: Axes) -> "Weights":
        """The same classifier for features as they were before `axes.rotate_`."""
        weight = self.weight @ axes.basis.T
        bias = self.bias.double() - weight.double() @ axes.mean.double()
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
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Weights:
    """Minimise mean cross-entropy + ‖W‖² / (2 C N), by L-BFGS from `start`.

    features (N, D): in the coordinates of `axes`. labels (N,) int64 in [0, K). A class without an example
    must have the bias −∞ in `start`, and keeps it: it takes no part.

    It stops after max_iter iterations, or when two things hold. No entry of the gradient, in the features' own
    coordinates, exceeds tol (times their root mean square if that is below 1), as in scikit-learn. And the
    decrease that is still to be had is estimated to be less than 10 tol times the objective.
    """
    count = len(features)
    penalty = 1 / (C * count)
    if start.bias.isfinite().sum() == 2:
        penalty *= 2  # scikit-learn's binary model penalises one vector, the difference of these two
    rms = axes.variance.mean().sqrt().item()
    enough = max(tol * min(1.0, rms), 16 * torch.finfo(features.dtype).eps * rms)
    curvature = start.curvature.clamp(min=FLOOR * start.curvature.mean())
    variance = axes.variance + FLOOR * axes.variance.mean()
    # What is optimised is each parameter divided by its scale.
    scales = [torch.addr(curvature.new_full((1, 1), penalty), curvature, variance).rsqrt(), curvature.rsqrt()]
    parameters = [torch.nn.Parameter(p / scale) for p, scale in zip((start.weight, start.bias), scales, strict=True)]
    seen = start

    @torch.no_grad()
    def closure() -> float:
        nonlocal seen
        weight, bias = (p * scale for p, scale in zip(parameters, scales, strict=True))
        loss, *gradients, curvature = _cross_entropy(features, labels, weight, bias)
        seen = Weights(weight, bias, curvature)
        loss += penalty / 2 * float(weight.square().sum(dtype=torch.float64))
        gradients[0] += penalty * weight
        for p, gradient, scale in zip(parameters, gradients, scales, strict=True):
            p.grad = gradient * scale
        decrease = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None) / 2
        own = torch.addr(gradients[0] @ axes.basis.T, gradients[1], axes.mean)
        if max(own.abs().max().item(), gradients[1].abs().max().item()) <= enough and decrease <= 10 * tol * loss:
            raise _Converged
        return loss

    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        tolerance_grad=0,  # the closure looks at the gradient in the coordinates that count
        tolerance_change=1e-2 * torch.finfo(features.dtype).eps,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    try:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        if optimizer.state[parameters[0]]["n_iter"] >= max_iter:
            log.warning("logistic regression with C = %g did not converge in %d iterations", C, max_iter)
    except _Converged:
        pass
    return seen


def _cross_entropy(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Mean cross-entropy, its gradients (K, D) and (K,), and each class's mean p (1 − p), (K,)."""
    gradient = torch.zeros_like(weight)
    share, squares = torch.zeros_like(bias), torch.zeros_like(bias)
    loss = weight.new_zeros((), dtype=torch.float64)
    blocks = _blocks(features, len(bias))
    for x, y in zip(blocks, torch.split(labels[:, None], len(blocks[0])), strict=True):
        p = torch.log_softmax(torch.addmm(bias, x, weight.T), dim=1)  # (rows, K)
        loss -= p.gather(1, y).sum(dtype=torch.float64)
        p.exp_()
        share += p.sum(dim=0)
        squares += p.square().sum(dim=0)
        p.scatter_add_(1, y, p.new_full((1, 1), -1.0).expand(len(y), 1))
        gradient.addmm_(p.T, x)
    frequency = torch.bincount(labels, minlength=len(bias))
    count = len(features)
    return loss.item() / count, gradient / count, (share - frequency) / count, (share - squares) / count
