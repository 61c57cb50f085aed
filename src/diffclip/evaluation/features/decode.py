"""A source's examples as pixels for a loader: each is an image, or the reason why it is none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diffclip.data.images import BadImage, decode
from diffclip.data.loading.workers import Pixels, stacked
from diffclip.data.sources import Source
from diffclip.data.transforms import EvalTransform
from diffclip.errors import UserError


@dataclass(frozen=True)
class DecodedImage:
    """An example whose image has become pixels: (3, S, S) uint8."""

    index: int
    pixels: Tensor
    label: int | None
    captions: tuple[str, ...]


# An image; or the reason why one cannot be read; or what is wrong with the data set as a whole, which raised in a
# worker would reach the user as a traceback.
Decoded = DecodedImage | str | UserError


class Items(list[Decoded]):
    """Some items of a data set, sent by a worker as one block of pixels and a list of the rest."""

    def __init__(self, items: Iterable[Decoded]) -> None:
        super().__init__(items)
        images = [item for item in self if isinstance(item, DecodedImage)]
        if images and get_worker_info() is not None:
            self._pixels = stacked([image.pixels for image in images])

    def __reduce__(self) -> Any:
        rest = [replace(item, pixels=None) if isinstance(item, DecodedImage) else item for item in self]  # type: ignore[arg-type]
        pixels = getattr(self, "_pixels", None)
        return _received, (rest, pixels)


def _received(rest: list[Decoded], pixels: Pixels | None) -> list[Decoded]:
    rows = iter(torch.as_tensor(pixels) if pixels is not None else ())
    return [replace(item, pixels=next(rows)) if isinstance(item, DecodedImage) else item for item in rest]


class DecodedImages(Dataset[Decoded]):
    """A source's examples, decoded and resized. `split_readable` takes what a loader makes of them."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self._source, self._transform = source, transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Decoded:
        try:
            example = self._source[index]
            pixels = self._transform(decode(example.image))
        except BadImage as error:
            return error.reason
        except UserError as error:
            return error
        return DecodedImage(index, pixels, example.label, example.captions)


def split_readable(items: Sequence[Decoded]) -> tuple[list[DecodedImage], list[str]]:
    """The images among them, and the reasons why the others are none. Raises the first UserError there is."""
    for item in items:
        if isinstance(item, UserError):
            raise UserError(*item.args)  # a new one: see data.loader
    return [i for i in items if isinstance(i, DecodedImage)], [i for i in items if isinstance(i, str)]
