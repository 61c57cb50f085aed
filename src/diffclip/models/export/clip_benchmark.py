"""LAION's clip_benchmark on the models of `diffclip.load`, by a model type of that name.

    python -m diffclip.models.export.clip_benchmark eval --model_type diffclip --model clip --pretrained runs/clip …

is `clip_benchmark eval …` with the type registered; every other option is clip_benchmark's. `--model` is what its table
calls the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from diffclip.errors import UserError
from diffclip.models.image_text import ImageTextModel, Tokenize
from diffclip.models.weights.store import load as load_model

TYPE = "diffclip"


def load(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: torch.device | str = "cpu"
) -> tuple[ImageTextModel, Callable[[Image.Image], Tensor], Tokenize]:
    """What clip_benchmark calls: the model that `pretrained` names, its preprocessing and its tokenizer.

    Raises UserError, also for a cache_dir: models of the hub lie in the hub's own cache.
    """
    if cache_dir is not None:
        raise UserError(f"--model_cache_dir {cache_dir}: models of the hub are kept where HF_HOME says")
    return load_model(pretrained, device)


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Top-k accuracies of logits (N, C) for labels (N,).

    It takes the place of clip_benchmark's, which makes a float of an array of one number: NumPy 2.4 refuses that.
    """
    hits = output.topk(max(topk), 1).indices == target[:, None]
    return [hits[:, :k].any(1).double().mean().item() for k in topk]


def register() -> None:
    """Make `diffclip` a model type of clip_benchmark in this process. Raises UserError where it is not installed."""
    try:
        from clip_benchmark import models
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise UserError(f"{error}: pip install 'diffclip[laion]'") from None
    models.TYPE2FUNC[TYPE] = load
    if TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(TYPE)
    zeroshot_classification.accuracy = accuracy


def main() -> None:
    """clip_benchmark's command. Ends with one line for what diffclip refuses."""
    try:
        register()
        from clip_benchmark.cli import main as command

        command()
    except UserError as error:
        sys.exit(f"diffclip: {error}")


if __name__ == "__main__":
    main()
