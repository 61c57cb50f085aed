"""The gradients of a step: of the loss in the features, then of the features in the weights.

The loss needs the features of the whole batch, and these are small; what fills memory are the activations behind them.
So the two halves are kept apart. Where the batch is encoded in one part its activations are there and the second half
goes through them. Where it is encoded in several (gradient caching: Gao et al. 2021, arXiv 2101.06983), features are
first computed without activations, and each part is encoded once more for the second half: the same gradients for a
third more work, in the memory of one part.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffclip.distributed import World
from diffclip.training.loss import Loss

# Logits that exist at a time: rows × columns, 8 MiB in float32.
LOGITS = 2**21

Outputs = dict[str, Tensor]
Part = TypeVar("Part")


@dataclass(frozen=True)
class Pairing:
    """Which captions belong to the images of a batch of B."""

    place: Tensor | None = None
    """(B,) int64: the caption of each image among those encoded; None where there are B, in order."""
    groups: Tensor | None = None
    """(B,) int64: equal for equal captions; None where every caption stands for itself."""


def backward(
    encode: Callable[[Part], Outputs],
    parts: Sequence[Part],
    pairing: Pairing,
    loss: Loss,
    *,
    world: World = World(),  # noqa: B008  it is frozen
    accumulating: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """The loss of a batch; its gradients are added to the `grad` of every weight, but for a loss that is not finite.

    encode: what CLIP.forward returns for a part of the batch, which has images and captions, though not as many of one
    as of the other. It must compute the same when called again. accumulating: what surrounds the passes of all parts
    but the last.

    With several processes each has its own rows of the batch. The loss is that of the whole batch, and so are the
    gradients, once their mean over the processes is taken, which is the layout's business.
    """
    if len(parts) == 1:
        outputs = encode(parts[0])
    else:
        with torch.no_grad():
            outputs = _joined([encode(part) for part in parts])
    value, gradients = feature_gradients(outputs, pairing, loss, world)
    if not math.isfinite(value):
        return value
    if len(parts) == 1:
        _propagate(outputs, gradients)
        return value
    done = dict.fromkeys(outputs, 0)
    for part in parts:
        with nullcontext() if part is parts[-1] else accumulating():
            again = encode(part)
            share = {}
            for name, output in again.items():
                if output.ndim == 0:
                    # A scalar's gradient is that of the whole batch already: it goes with the last part.
                    share[name] = gradients[name] if part is parts[-1] else torch.zeros_like(output)
                else:
                    share[name] = gradients[name][done[name] : done[name] + len(output)]
                    done[name] += len(output)
            _propagate(again, share)
    return value


def feature_gradients(
    outputs: Mapping[str, Tensor],
    pairing: Pairing,
    loss: Loss,
    world: World = World(),  # noqa: B008  it is frozen
) -> tuple[float, Outputs]:
    """The loss, and `world.size` times its gradient in each of `outputs`, in the shape of each.

    Each process computes the loss of its own rows among the features of all, and gets from every other one what that
    one's rows lose by its features.
    """
    leaves = {}
    for name, output in outputs.items():
        own = _rows(name, output.detach(), pairing)
        leaves[name] = (own if own.ndim == 0 else world.all_gather(own)).requires_grad_()
    groups = None if pairing.groups is None else world.all_gather(pairing.groups)
    every = len(leaves["image_features"])
    size = every // world.size
    shares = []
    with torch.enable_grad():
        for rows in _blocks(world.rank * size, size, every):
            share = loss(leaves, groups, rows) * ((rows.stop - rows.start) / size)
            share.backward()  # type: ignore[no-untyped-call]
            shares.append(share.detach())
    value = float(world.mean(torch.stack(shares).sum()))
    gradients = {}
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        own = gradient if leaf.ndim == 0 else world.reduce_scatter(gradient)
        gradients[name] = _sum_of_rows(name, own, outputs[name], pairing)
    return value, gradients


def _blocks(first: int, size: int, every: int) -> Iterator[slice]:
    """`size` rows from the first, as many at a time as keep the logits, with `every` column each, small."""
    height = max(1, LOGITS // every)
    return (slice(row, min(first + size, row + height)) for row in range(first, first + size, height))


def _rows(name: str, output: Tensor, pairing: Pairing) -> Tensor:
    """Captions that were encoded once → one for each image."""
    return output[pairing.place] if name == "text_features" and pairing.place is not None else output


def _sum_of_rows(name: str, gradient: Tensor, output: Tensor, pairing: Pairing) -> Tensor:
    """The gradient of _rows: a caption's is the sum over its images."""
    if name == "text_features" and pairing.place is not None:
        return torch.zeros_like(output).index_add_(0, pairing.place, gradient)
    return gradient


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Features one after another; scalars are the same in every part."""
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, output in part.items():
            found.setdefault(name, []).append(output)
    return {name: values[0] if values[0].ndim == 0 else torch.cat(values) for name, values in found.items()}


def _propagate(outputs: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    torch.autograd.backward(list(outputs.values()), [gradients[name] for name in outputs])
