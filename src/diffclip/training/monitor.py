"""What watches over a run: λ and the entropy of the attention, and one warning a layer when either goes wrong."""

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LAMBDA_RANGE = (0.0, 1.5)
# Share of log(number of visible keys). A fresh model is near 1; below this a query sees little more than one token.
COLLAPSED_ENTROPY = 0.05


def attention_entropy(attention: Tensor, *, causal: bool) -> float:
    """Entropy of softmax maps as a share of the largest possible one, log of the number of visible keys: in [0, 1].

    attention: (..., N, N), rows summing to 1. With `causal` query i sees keys 0 to i; the first, which has no choice,
    adds nothing to either sum. A single token has entropy 1 by definition.
    """
    queries, keys = attention.shape[-2:]
    visible = torch.arange(1, queries + 1) if causal else torch.full((queries,), keys)
    largest = visible.double().log().sum() * attention[..., 0, 0].numel()
    if largest == 0:
        return 1.0
    return float(torch.special.entr(attention.double()).sum().cpu() / largest)


class Monitor:
    """Warns once a layer: of λ outside [0, 1.5], and of attention that has collapsed onto single tokens."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, str, int]] = set()

    def lambdas(self, step: int, lambdas: Mapping[str, Sequence[float]]) -> None:
        """lambdas: tower → λ of each layer."""
        low, high = LAMBDA_RANGE
        for tower, values in lambdas.items():
            for layer, value in enumerate(values):
                if not low <= value <= high or math.isnan(value):
                    self._warn(
                        ("λ", tower, layer),
                        f"step {step}: λ of {tower} layer {layer} is {value:.3f}, outside [{low:g}, {high:g}]: "
                        "the subtraction adds or dominates; a lower learning rate helps",
                    )

    def entropies(self, step: int, entropies: Mapping[str, Sequence[float]]) -> None:
        """entropies: tower → attention_entropy of each layer."""
        for tower, values in entropies.items():
            for layer, value in enumerate(values):
                if value < COLLAPSED_ENTROPY:
                    self._warn(
                        ("entropy", tower, layer),
                        f"step {step}: attention of {tower} layer {layer} has collapsed: its entropy is {value:.1%} "
                        "of the largest possible, so a query sees one token; a lower learning rate helps",
                    )

    def _warn(self, key: tuple[str, str, int], message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning(message)
