"""λ, the weight of the subtracted attention map, by layer over a training run."""

from pathlib import Path

from diffclip.analysis.curves import Curve, read_curves

PREFIX = "lambda_"


def by_layer(run: Path) -> dict[str, Curve]:
    """Tower ("visual", "text") → its λ over the run, values (T, layers), first layer first.

    A tower with standard attention has none. Raises UserError as `read_curves` does.
    """
    return {
        name.removeprefix(PREFIX): curve
        for name, curve in read_curves(run).items()
        if name.startswith(PREFIX) and curve.values.ndim == 2 and curve.values.shape[1]
    }
