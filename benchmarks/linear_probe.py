"""How much faster is diffclip's linear probe than the same protocol with scikit-learn, and is it as accurate?

    python benchmarks/linear_probe.py [--train 50000] [--dim 512] [--classes 100] [--json FILE]

Both choose C on validation examples by the same two-stage search and fit again on train and validation, in one
process, on the same threads and the same float32 features, which scikit-learn's LogisticRegression keeps in
float32 too: diffclip, scikit-learn, diffclip again. Wall and CPU seconds are of the whole protocol, the latter
for machines that do other work too. The features are Gaussian classes that overlap, in directions whose
variance falls as 1/k, as that of image features does: a fifth of the training examples are for validation, and
the test set is as large as a fifth. --features takes real ones instead: a safetensors file with train_x,
train_y, test_x and test_y. It fails if the two accuracies differ by more than 0.2 points.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from diffclip.evaluation.tasks import linear_probe

TOLERANCE = 0.002
ITERATIONS = 1000

Splits = list[torch.Tensor]


def overlapping_classes(train: int, dim: int, classes: int, separation: float) -> Splits:
    """train_x, train_y, val_x, val_y, test_x, test_y."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, dim + 1).rsqrt()
    spectrum *= (dim / spectrum.square().sum()).sqrt()  # features of unit variance on average
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    means = separation * torch.randn(classes, dim, generator=generator)
    splits = []
    for count in (train - train // 5, train // 5, train // 5):
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, dim, generator=generator)
        splits += [((means[labels] + noise) * spectrum) @ rotation, labels]
    return splits


def real(path: Path, train: int) -> Splits:
    """The same of features on disk, at most `train` of them."""
    found = load_file(path)
    some = torch.randperm(len(found["train_y"]), generator=torch.Generator().manual_seed(0))[:train]
    x, y = found["train_x"][some].float(), found["train_y"][some]
    kept, held_out = linear_probe.hold_out(y)
    return [x[kept], y[kept], x[held_out], y[held_out], found["test_x"].float(), found["test_y"]]


def with_diffclip(splits: Splits) -> dict[str, float]:
    probe = linear_probe.fit_and_predict(*splits[:5])
    accuracy = linear_probe.accuracy(probe.predictions, splits[5], False)
    return {"acc1": accuracy, "C": probe.C, "tried": len(probe.validation)}


def with_scikit_learn(splits: Splits) -> dict[str, float]:
    train_x, train_y, val_x, val_y, test_x, test_y = (split.numpy() for split in splits)
    iterations = 0

    def fit(step: int, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        nonlocal iterations
        model = LogisticRegression(C=linear_probe.cost(step), max_iter=ITERATIONS).fit(x, y)
        iterations += int(model.n_iter_.sum())
        return model

    best, tried = linear_probe.search(lambda step: fit(step, train_x, train_y).score(val_x, val_y))
    final = fit(best, np.concatenate([train_x, val_x]), np.concatenate([train_y, val_y]))
    accuracy = float(final.score(test_x, test_y))
    return {"acc1": accuracy, "C": linear_probe.cost(best), "tried": len(tried), "iterations": iterations}


def measure(protocol: Callable[[Splits], dict[str, float]], splits: Splits) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = protocol(splits)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=50_000, help="training and validation examples together")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--separation", type=float, default=0.15, help="of class means, in standard deviations")
    parser.add_argument("--features", type=Path, help="real features instead: a safetensors file")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if arguments.features:
        splits = real(arguments.features, arguments.train)
    else:
        splits = overlapping_classes(arguments.train, arguments.dim, arguments.classes, arguments.separation)
    classes = len(splits[1].unique())
    print(f"{len(splits[1])} + {len(splits[3])} × {splits[0].shape[1]}, {classes} classes; ", end="")
    print(f"{torch.get_num_threads()} threads", flush=True)
    print(f"{'':14}{'seconds':>9}{'CPU s':>9}{'C tried':>9}{'C':>11}{'accuracy':>10}", flush=True)
    runs: dict[str, list[dict[str, float]]] = {"diffclip": [], "scikit-learn": []}
    for name in ("diffclip", "scikit-learn", "diffclip"):
        found = measure(with_diffclip if name == "diffclip" else with_scikit_learn, splits)
        runs[name].append(found)
        numbers = f"{found['seconds']:9.1f}{found['cpu_seconds']:9.1f}{found['tried']:9}{found['C']:11.3g}"
        print(f"{name:14}{numbers}{100 * found['acc1']:9.2f}%", flush=True)
    ratios = {
        kind: runs["scikit-learn"][0][kind] / statistics.median(run[kind] for run in runs["diffclip"])
        for kind in ("seconds", "cpu_seconds")
    }
    print(f"faster: {ratios['seconds']:.1f}× by the clock, {ratios['cpu_seconds']:.1f}× in CPU time")
    if arguments.json:
        size = {"train": len(splits[1]), "val": len(splits[3]), "dim": splits[0].shape[1], "classes": classes}
        figures = {"size": size, "threads": torch.get_num_threads(), "runs": runs, "faster": ratios}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    difference = abs(runs["diffclip"][0]["acc1"] - runs["scikit-learn"][0]["acc1"])
    if difference > TOLERANCE:
        print(f"the accuracies differ by {100 * difference:.2f} points")
    return int(difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
