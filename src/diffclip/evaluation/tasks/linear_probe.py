"""Linear probe: a logistic regression on frozen features (El Banani et al. 2023, after Radford et al. 2021).

C, the inverse strength of the penalty, is chosen by the accuracy on the validation examples, in two stages;
the classifier is then fitted again on the training and the validation examples together.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.encode import check_finite
from diffclip.evaluation.features.logistic_regression import Axes, Weights, fit
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

log = logging.getLogger(__name__)

# C is 10^(step / 7), so that every C of both stages is an integer: 29 points in four decades are 7 steps a decade.
PER_DECADE = 7
COARSE = tuple(range(-6 * PER_DECADE, 6 * PER_DECADE + 1, 2 * PER_DECADE))
"""1e-6, 1e-4, …, 1e6."""
HELD_OUT = 0.2
PER_CLASS = "mean_per_class_recall"


@dataclass(frozen=True)
class Probe:
    """What a linear probe chose and said."""

    C: float
    predictions: Tensor
    """(N_test,) int64, on the CPU: one of the labels of train and val."""
    validation: Mapping[float, float]
    """C → accuracy on the validation examples, of each C that was tried, in order."""


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor | None,
    val_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor,
    *,
    mean_per_class: bool = False,
) -> dict[str, float]:
    """`acc1` and `mean_per_class_recall` on test, fractions, and the `C` that was chosen.

    *_x (N, D) float, features as the model gives them; *_y (N,) int64, labels from 0. Without validation
    examples (None), 20 % of each class of train are held out, always the same. With mean_per_class, C is chosen
    by the mean over classes of the accuracy of each, which then is the protocol's number: that of Aircraft,
    Caltech-101, Flowers and Pets. Raises UserError for features that are not finite or do not match, and
    labels that are missing or do not match.
    """
    _check("test", test_x, test_y, train_x.shape[-1])
    probe = fit_and_predict(train_x, train_y, val_x, val_y, test_x, mean_per_class=mean_per_class)
    return evaluate(probe, test_y, torch.arange(len(test_y))).metrics


def evaluate(probe: Probe, test_y: Tensor, indices: Tensor) -> PerExampleScores:
    """What each test example adds to the accuracies that `linear_probe` returns, under the LAION benchmark's names.

    test_y (N_test,) int64; indices (N_test,), the place of each in the data set.
    """
    values = {
        name: _hits(probe.predictions, test_y.cpu(), mean_per_class)
        for name, mean_per_class in (("acc1", False), (PER_CLASS, True))
    }
    guess = 1 / len(torch.unique(test_y))
    return PerExampleScores(indices, values, dict.fromkeys(values, guess), facts={"C": probe.C})


def accuracy(predictions: Tensor, labels: Tensor, mean_per_class: bool) -> float:
    """The share of right predictions (N,), or its mean over the classes that occur in labels (N,)."""
    return _hits(predictions, labels, mean_per_class).mean().item()


def _hits(predictions: Tensor, labels: Tensor, mean_per_class: bool) -> Tensor:
    """(N,) float64, whose mean is the accuracy; see `zero_shot.scores` for the weights of a mean per class."""
    hits = (predictions == labels).double()
    if not mean_per_class:
        return hits
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    weights: Tensor = len(labels) / (counts[inverse] * len(counts))
    return hits * weights


@torch.no_grad()
def fit_and_predict(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor | None,
    val_y: Tensor | None,
    test_x: Tensor,
    *,
    mean_per_class: bool = False,
) -> Probe:
    """Choose C, fit on train and val, predict test; arguments and errors as for `linear_probe`.

    It works where train_x is (a GPU, say), in float64 if train_x is and else in float32. Memory: one copy of
    the train and val features, and blocks.
    """
    if (val_x is None) != (val_y is None):
        raise UserError("a linear probe needs features and labels of the validation examples, or neither")
    _check("train", train_x, train_y, train_x.shape[-1])
    dtype = torch.float64 if train_x.dtype == torch.float64 else torch.float32
    device = train_x.device
    train_y = train_y.to(device)
    if val_x is None or val_y is None:
        kept, held_out = hold_out(train_y)
        order = torch.cat([kept, held_out])
        features, all_y, trained = train_x[order].to(dtype), train_y[order], len(kept)
    else:
        _check("val", val_x, val_y, train_x.shape[1])
        features = torch.cat([train_x.to(dtype), val_x.to(device, dtype)])
        all_y, trained = torch.cat([train_y, val_y.to(device)]), len(train_y)
    _check("test", test_x, None, train_x.shape[1])
    classes, labels = torch.unique(all_y, return_inverse=True)  # labels in [0, K)
    if len(torch.unique(labels[:trained])) < 2:
        raise UserError(f"a linear probe needs two classes, but all training labels are {train_y[0]}")

    axes = Axes.of(features)
    axes.rotate_(features)
    train, val = slice(trained), slice(trained, None)
    solved: dict[int, Weights] = {}

    def validate(step: int) -> float:
        below = max((other for other in solved if other < step), default=None)
        above = min((other for other in solved if other > step), default=None)
        if below is None:
            start = Weights.prior(axes, labels[train], len(classes))
        elif above is None:
            start = solved[below]
        else:
            start = solved[below].towards(solved[above], (step - below) / (above - below))
        solved[step] = fit(axes, features[train], labels[train], cost(step), start)
        score = accuracy(solved[step].predict(features[val]), labels[val], mean_per_class)
        log.info("linear probe: C = %.3g, accuracy on val %.4f", cost(step), score)
        return score

    best, tried = search(validate)
    prior, near = Weights.prior(axes, labels, len(classes)), solved[best]
    bias = torch.where(near.bias.isfinite(), near.bias, prior.bias)  # classes that only val has
    curvature = torch.where(near.bias.isfinite(), near.curvature, prior.curvature)
    final = fit(axes, features, labels, cost(best), Weights(near.weight, bias, curvature)).rotate_back(axes)
    predictions = classes[final.predict(test_x.to(device, dtype))].cpu()
    return Probe(cost(best), predictions, {cost(step): score for step, score in tried.items()})


def cost(step: int) -> float:
    """The C of a step of the search."""
    return float(10 ** (step / PER_DECADE))


def search(validate: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The best step, and the accuracy of each step that was tried, in order; `validate` is asked once a step.

    First the coarse ones. Of equals the smallest C is best. Then, between the coarse neighbours of the best,
    a binary search as in the code that El Banani et al. released. It compares the points a quarter, a half and
    three quarters through what is left, and keeps the half around the best. On a tie that is the lower half,
    then the upper, then the middle. The result is the best of the coarse winner and all points of
    the second stage; of equals the one tried first.
    """
    tried = {step: validate(step) for step in COARSE}
    coarse = max(tried, key=tried.__getitem__)
    near = {coarse: tried[coarse]}
    left = range(max(COARSE[0], coarse - 2 * PER_DECADE), min(COARSE[-1], coarse + 2 * PER_DECADE) + 1)
    while len(left) > 1:
        low, half, high = len(left) // 4, len(left) // 2, len(left) - (len(left) + 3) // 4
        for step in (left[low], left[half], left[high]):
            if step not in near:
                near[step] = tried[step] if step in tried else validate(step)
        top = max(near[left[low]], near[left[half]], near[left[high]])
        if near[left[low]] == top:
            left = left[:half]
        elif near[left[high]] == top:
            left = left[half:]
        else:
            left = left[low:high]
    return max(near, key=near.__getitem__), {**tried, **near}


def hold_out(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which examples are kept for training, and which are held out, by labels (N,): two int64 tensors.

    A fifth of each class, rounded down, so none of a class of fewer than five; the split that El Banani et
    al. make. Raises UserError where no class has five.
    """
    kept, held_out = [], []
    _, counts = torch.unique(labels.cpu(), return_counts=True)
    for members in torch.split(labels.cpu().argsort(stable=True), counts.tolist()):
        shuffled = members.tolist()
        random.Random(93).shuffle(shuffled)
        count = int(len(shuffled) * HELD_OUT)
        held_out += shuffled[:count]
        kept += shuffled[count:]
    if not held_out:
        raise UserError("no class has five training examples, a fifth of which to hold out: give validation examples")
    return torch.tensor(kept, device=labels.device), torch.tensor(held_out, device=labels.device)


def _check(split: str, x: Tensor, y: Tensor | None, dim: int) -> None:
    if x.ndim != 2 or not len(x) or x.shape[1] != dim:
        raise UserError(f"{split} features must be (N, {dim}), one row an example, found {tuple(x.shape)}")
    check_finite(f"{split} features", x)
    if y is None:
        return
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise UserError(f"{split} has {len(x)} features, but labels of shape {tuple(y.shape)} and type {y.dtype}")
    if missing := int((y < 0).sum()):
        raise UserError(f"{missing} of {len(y)} {split} examples have no label: leave them out")


def _measure(context: EvalContext) -> PerExampleScores:
    train_x, train_y, _ = context.features_and_labels("train")
    val_x, val_y, _ = context.features_and_labels("val") if context.data.has("val") else (None, None, None)
    test_x, test_y, indices = context.features_and_labels("test")
    probe = fit_and_predict(train_x, train_y, val_x, val_y, test_x, mean_per_class=context.data.mean_per_class)
    return evaluate(probe, test_y, indices)


TASK = Task(
    name="linear_probe",
    title="linear probe",
    result="linear_probe",
    needs="labels and a train split",
    requires=("numbers", "train"),
    splits=("train", "val", "test"),
    settings=("features", None),
    headline="acc1",
    metrics=(
        Metric("acc1", "top-1 accuracy"),
        Metric(PER_CLASS, "mean per-class recall"),
        Metric("acc5", "top-5 accuracy"),  # in the LAION CLIP benchmark's results alone
        Metric("C", "C", unit="", better=None),
    ),
    measure=_measure,
    version=2,
)
