"""`diffclip heads`: what the heads of models do, in four figures and their numbers"""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import model_labels, say_loading


def heads(
    model: Positional[str],
    /,
    *,
    beside: tuple[str, ...] = (),
    data: str,
    split: str | None = None,
    sample: int = 64,
    out: Path,
) -> None:
    """Draw rank and size of heads' contexts, sinks, and gradients through the norm.

    Args:
        model: A CLIP of ours: a run, a folder, a file.
        beside: Further models, drawn in the same figures.
        data: Images with captions or classes: a folder, a file, or scenes:test.
        split: Which part of a folder that holds several.
        sample: How many images, drawn at random but the same for every model.
        out: The folder for rank.png, size.png, sinks.png, gradient.png, heads.json and README.md, what each shows.
    """
    if not 1 <= sample <= 1024:
        raise UserError(f"--sample {sample}: give 1 to 1024 images")
    say_loading()

    from diffclip.data.options import Located
    from diffclip.evaluation.datasets.folders import open_given
    from diffclip.reporting.head_numbers import measure, write
    from diffclip.terminal import Terminal

    source = open_given(Located(path=data, split=split))
    names = (model, *beside)
    measured = {label: measure(name, source, sample) for label, name in zip(model_labels(names), names, strict=True)}
    write(measured, out, source.name, min(sample, len(source)))
    Terminal().print(f"4 figures, heads.json and README.md in {out}", highlight=False, soft_wrap=True)
