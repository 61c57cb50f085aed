"""What a model's images are: their size, how they become square, their mean and deviation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from diffclip.errors import UserError

if TYPE_CHECKING:
    from diffclip.data.transforms import EvalTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# Far beyond any model: a configuration that lies must not keep the program busy, or overflow.
MAX_SIZE = 1 << 20

Size = Annotated[int, Field(strict=True, ge=1, le=MAX_SIZE)]
Number = Annotated[float, Field(strict=True)]
Colours = tuple[Number, Number, Number]
"""Of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The pixels that a model takes, and how they are made of an image. Raises UserError for a deviation of 0."""

    image_size: Size = 224
    """Pixels on an edge; images are square."""
    image_mean: Colours = IMAGENET_MEAN
    image_std: Colours = IMAGENET_STD
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    """How an image becomes square: shorter edge resized and the centre kept, both edges resized, or longer edge resized
    and the rest filled."""
    resize_to: Size | None = None
    """Pixels to which an edge is resized before the centre is cut out; None: image_size, so that most is kept."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["torch", "pillow"] = "torch"
    """Who resizes: Pillow, slower, for models that were trained on its pixels; one in 300 differs by a grey level."""
    crop: Literal["round", "floor"] = "round"
    """Half a pixel of a margin: to the even neighbour, as torchvision cuts, or down, as transformers cuts."""
    fill: Annotated[int, Field(strict=True, ge=0, le=255)] = 0
    """Grey level of what is filled, with resize = "longest"."""

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list when read from JSON or TOML
        if min(self.image_std) <= 0:
            raise UserError(f"image_std = {self.image_std}: give numbers above 0")
        if self.resize_to is not None and (self.resize_to < self.image_size or self.resize == "longest"):
            raise UserError(f"resize_to = {self.resize_to}: give at least image_size = {self.image_size}, no longest")

    @property
    def transform(self) -> EvalTransform:
        """From a decoded image to uint8 pixels, not normalised yet."""
        from diffclip.data.transforms import EvalTransform

        names = ("resize", "resize_to", "interpolation", "resizer", "crop", "fill")
        return EvalTransform(self.image_size, **{name: getattr(self, name) for name in names})
