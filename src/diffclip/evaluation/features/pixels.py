"""The labelled images of a data set as pixels, for tasks that change the pixels before a model sees them."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffclip.data.loading.workers import batches_of
from diffclip.data.sources import Source
from diffclip.errors import UserError
from diffclip.evaluation.features.decode import Decoded, Items, split_readable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Some images of a source."""

    indices: Tensor
    """(B,) int64, each image's place in the source."""
    pixels: Tensor
    """(B, …, 3, S, S) uint8, as the model sees them before they are normalised."""
    labels: Tensor
    """(B,) int64."""


def sample_indices(source: Source, limit: int | None, seed: int) -> list[int]:
    """`limit` examples drawn by `seed`, in the order of the source; all where it has no more than that.

    Drawn, because the first ones of a folder of classes are all of one class. Raises UserError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be 1 or more images, not {limit}")
    if limit is None or limit >= len(source):
        return list(range(len(source)))
    return sorted(np.random.default_rng(seed).choice(len(source), limit, replace=False).tolist())


def classnames_of(source: Source) -> tuple[str, ...]:
    """The names of a source's classes. Raises UserError where it has none."""
    if not source.classnames:
        raise UserError(f"{source.name} has no class names, which a zero-shot classifier needs")
    return source.classnames


def batches(
    source: Source,
    images: Dataset[Decoded],
    indices: list[int],
    batch_size: int,
    num_workers: int,
    skipped: Counter[str],
) -> Iterator[Batch]:
    """Those of the source's examples `indices` that have an image and a label; of the others, a warning.

    images: as `DecodedImages` of the source makes them. skipped: gets those without an image, by reason. Raises
    UserError where no example has both, and for a label without class name.
    """
    unlabelled = 0
    groups = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for items in batches_of(images, batch_sampler=groups, num_workers=num_workers, collate=Items):
        good, labels = [], []
        readable, unreadable = split_readable(items)
        skipped.update(unreadable)
        for item in readable:
            if item.label is None:
                unlabelled += 1
            else:
                good.append(item)
                labels.append(item.label)
        if good:
            if max(labels) >= len(classnames_of(source)):
                raise UserError(
                    f"{source.name} has the label {max(labels)}, but only {len(classnames_of(source))} class names"
                )
            places = torch.tensor([item.index for item in good])
            yield Batch(places, torch.stack([item.pixels for item in good]), torch.tensor(labels))
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in sorted((skipped + Counter({"without label": unlabelled})).items())
    )
    if skipped.total() + unlabelled == len(indices):
        raise UserError(f"data set {source.name}: no image with a label could be read: {reasons or 'it is empty'}")
    if reasons:
        log.warning("%s: skipped images: %s", source.name, reasons)
