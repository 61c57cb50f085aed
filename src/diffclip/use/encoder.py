"""A model as an encoder of pictures and texts: its precision, its batches, and the threads that decode beside it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip.data.parallel import processors
from diffclip.data.transforms import normalise
from diffclip.distributed import default_device
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import text_features
from diffclip.models.clip import check_finite, evaluation_mode
from diffclip.models.image_text import ImageTextModel
from diffclip.models.weights.store import fingerprint, load
from diffclip.use.upright import decode_upright

Precision = Literal["float32", "bfloat16", "int8"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
ON_CPU, ON_GPU = 16, 256
"""Pictures of a batch: 8 to 32 take the same time on a CPU, one by one takes a fifth more. Not measured on a GPU."""
AHEAD = 3
"""Batches that may be decoded before they are encoded."""
MOST = 1024
"""Things of a batch, whatever they are: of an index that is up to date few are pictures to be encoded."""
DECODED = 2
"""A JPEG is decoded no smaller than this many times what the model sees: antialiased resizing does the rest."""

Features = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Some things in their order, with the features of those that are pictures."""

    items: list[T]
    rows: list[int | None]
    """The row of each in `features`; None where there was nothing to encode."""
    features: Features
    """(n, embed_dim), normalised."""

    def pairs(self) -> Iterator[tuple[T, Features | None]]:
        """Each thing with its feature (embed_dim,), or None."""
        for item, row in zip(self.items, self.rows, strict=True):
            yield item, None if row is None else self.features[row]


@dataclass
class Encoder:
    """A model in evaluation mode, from decoded pictures and texts to normalised features."""

    model: ImageTextModel
    fingerprint: str
    """Of weights and configuration in float32, whatever the precision is."""
    source: str
    """Where the model lies."""
    precision: Precision = "float32"
    batch_size: int = ON_CPU
    _quantised: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        return int(self.texts(["a"]).shape[1])

    def pixels(self, image: bytes | NDArray[np.uint8]) -> Tensor:
        """A picture as it is stored, or decoded (H, W, 3) uint8 → (3, S, S) uint8, upright. Raises BadImage."""
        settings = self.model.config
        least = DECODED * (settings.resize_to or settings.image_size)
        return settings.transform(decode_upright(image, shorter_edge=least))

    def images(self, pixels: Sequence[Tensor]) -> Features:
        """Pictures (3, S, S) uint8 → (N, embed_dim). Raises UserError for a feature that is not finite."""
        if not pixels:
            return np.empty((0, self.width), np.float32)
        settings, device = self.model.config, next(self.model.parameters()).device
        given = normalise(torch.stack(list(pixels)).to(device), settings.image_mean, settings.image_std)
        with evaluation_mode(self.model), torch.inference_mode():
            if self._quantised is not None:
                features = torch.nn.functional.normalize(self._quantised(given), dim=-1)
            else:
                features = self.model.encode_image(given, normalize=True).float().cpu()
        check_finite("image features", features)
        encoded: Features = features.numpy()
        return encoded

    def texts(self, texts: Sequence[str]) -> Features:
        """Texts → (N, embed_dim), each distinct one encoded once."""
        if not texts:
            return np.empty((0, self.width), np.float32)
        with torch.inference_mode():
            features: Features = text_features(self.model, self.model.tokenizer, texts).numpy()
        return features

    def stream(self, items: Iterable[T], pixels: Callable[[T], Tensor | None]) -> Iterator[Batch[T]]:
        """The features of any number of things, in their order, decoded by threads while others are encoded.

        pixels: of a thing, in any thread: what `pixels` gives, or None where there is nothing to encode.
        """
        taken: list[tuple[T, Tensor | None]] = []
        for pair in self._decoded(items, pixels):
            taken.append(pair)
            if sum(given is not None for _, given in taken) >= self.batch_size or len(taken) >= MOST:
                yield self._batch(taken)
                taken = []
        if taken:
            yield self._batch(taken)

    def _decoded(self, items: Iterable[T], pixels: Callable[[T], Tensor | None]) -> Iterator[tuple[T, Tensor | None]]:
        """Each thing with its pixels, in order; threads are some batches ahead."""
        waiting: deque[tuple[T, Future[Tensor | None]]] = deque()
        with ThreadPoolExecutor(max(2, processors()), thread_name_prefix="decode") as pool:
            try:
                for item in items:
                    waiting.append((item, pool.submit(pixels, item)))
                    if len(waiting) >= AHEAD * self.batch_size:
                        yield _result(waiting)
                while waiting:
                    yield _result(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _batch(self, taken: list[tuple[T, Tensor | None]]) -> Batch[T]:
        given = [pixels for _, pixels in taken if pixels is not None]
        rows, count = list[int | None](), 0
        for _, pixels in taken:
            rows.append(None if pixels is None else count)
            count += pixels is not None
        return Batch([item for item, _ in taken], rows, self.images(given))


def _result(waiting: deque[tuple[T, Future[Tensor | None]]]) -> tuple[T, Tensor | None]:
    item, future = waiting.popleft()
    return item, future.result()


def open_encoder(source: str, precision: Precision = "float32", batch_size: int | None = None) -> Encoder:
    """The model at `source`, as `diffclip.load` takes it, on this process's device.

    precision: "bfloat16" halves memory, and time where the processor multiplies it; "int8" encodes pictures by a
    quantised graph, which is made once and kept (extra `onnx`, CPU alone). Raises UserError.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: give at least 1")
    device = default_device()
    if precision == "int8" and device.type != "cpu":
        raise UserError("--dtype int8 is for CPUs: take bfloat16 on a GPU")
    model = load(source, device)[0]
    digest = fingerprint(model)
    model = model.to(DTYPES[precision])
    size = batch_size or (ON_CPU if device.type == "cpu" else ON_GPU)
    place = os.path.abspath(source) if Path(source).exists() else source
    quantised = None
    if precision == "int8":
        from diffclip.use.quantised import quantised_encoder

        quantised = quantised_encoder(model, digest)
    return Encoder(model, digest, place, precision, size, quantised)


def encoder_of(model: str | Path | ImageTextModel, precision: Precision = "float32") -> Encoder:
    """An encoder of a model that is loaded, or is still to be. Raises UserError for a precision of a loaded one."""
    if isinstance(model, ImageTextModel):
        if precision != "float32":
            raise UserError(f"precision = {precision!r} is of a model still to be loaded: give its path")
        size = ON_CPU if next(model.parameters()).device.type == "cpu" else ON_GPU
        return Encoder(model, "", "", "float32", size)
    return open_encoder(str(model), precision)
