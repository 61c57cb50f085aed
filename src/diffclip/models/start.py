"""The model that training starts from, where one exists: loaded, and maybe converted."""

from collections.abc import Mapping
from typing import Any

from diffclip.models.convert import convert
from diffclip.models.library import Trainable
from diffclip.models.weights.store import load_trainable


def started(source: str, overrides: Mapping[str, Any], conversion: Mapping[str, Any]) -> Trainable:
    """The model of `source`, what `diffclip.load` takes, with other attention where conversion["attention"] names one.

    overrides: fields of its configuration. conversion: arguments of `convert`. Raises UserError as both do.
    """
    model = load_trainable(source, what="training", **overrides)
    return convert(model, **conversion) if conversion["attention"] else model
