"""The gradients of a batch whose activations do not fit into memory: a step's middle, in micro-batches.

The loss needs the features of the whole batch, and these are small; what fills memory are the activations behind them.
So features are first computed without activations, and each micro-batch is encoded once more for its backward pass
(gradient caching: Gao et al. 2021, arXiv 2101.06983). That is a third more work in the memory of one micro-batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from diffclip.distributed import World
from diffclip.training.loss import Loss, Outputs, Pairing, backward_by_rows, gather, scatter_gradients

Part = TypeVar("Part")


def cached_backward(
    encode: Callable[[Part], Outputs],
    parts: Sequence[Part],
    pairing: Pairing,
    loss_of: Loss,
    world: World = World(),  # noqa: B008  it is frozen
    accumulating: Callable[[], AbstractContextManager[None]] = nullcontext,
    scaled: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda gradients: gradients,
) -> float:
    """The loss of a batch; its gradients are added to the `grad` of every weight, but for a loss that is not finite.

    encode: what CLIP.forward returns for a micro-batch, which has images and captions, though not as many of one as of
    the other. It must compute the same when called again. accumulating: what surrounds the backward passes of all
    micro-batches but the last. scaled: what becomes of the gradients in the features, before they go on. Loss and
    gradients are else those of `TrainState.step` for the whole batch.
    """
    with torch.no_grad():
        features = _concatenate([encode(part) for part in parts])
    gathered = gather(features, pairing, world)
    loss = backward_by_rows(loss_of, gathered, world)
    gradients = dict(zip(features, scaled(scatter_gradients(gathered, features, pairing, world)), strict=True))
    if not math.isfinite(loss):
        return loss
    done = dict.fromkeys(features, 0)
    for part in parts:
        with nullcontext() if part is parts[-1] else accumulating():
            again = encode(part)
            share: list[Tensor] = []
            for name, output in again.items():
                if output.ndim == 0:
                    # A scalar's gradient is that of the whole batch already: it goes with the last part.
                    share.append(gradients[name] if part is parts[-1] else torch.zeros_like(output))
                else:
                    share.append(gradients[name][done[name] : done[name] + len(output)])
                    done[name] += len(output)
            backward(again.values(), share)
    return loss


def backward(outputs: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Of several outputs, those that depend on something which is trained: a frozen tower's features do not."""
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if output.requires_grad]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def _concatenate(parts: Sequence[Outputs]) -> Outputs:
    """Features one after another; scalars are the same in every part."""
    return {
        name: value if value.ndim == 0 else torch.cat([part[name] for part in parts])
        for name, value in parts[0].items()
    }
