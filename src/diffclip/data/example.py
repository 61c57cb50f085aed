"""One example of a source, and the options of a source."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """An image, encoded or as a uint8 array (H, W, 3), with captions or the number of its class, or both."""

    image: bytes | NDArray[np.uint8]
    captions: tuple[str, ...] = ()
    label: int | None = None


@dataclass(frozen=True)
class Options:
    """What to call a source, and what of it is stated instead of being found out."""

    name: str
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    allow_outside: bool = field(default=False, repr=False)  # stamps are made of the others
