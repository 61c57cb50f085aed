"""Winoground (Thrush et al. 2022): two images and two captions of the same words in another order.

The data set is gated, so it comes from a local folder: the parquet of the Hugging Face hub, with columns image_0,
image_1, caption_0, caption_1, tag, secondary_tag and collapsed_tag.
"""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffclip.data.example import Options
from diffclip.data.formats.parquet import ParquetSource
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.evaluation.datasets.pairs import FilePair
from diffclip.reading import opened

logger = logging.getLogger(__name__)

EXAMPLES = 400
COLUMNS = {"image_0", "image_1", "caption_0", "caption_1", "collapsed_tag"}
PLACES = ("", "data/", "test/", "default/test/")


class WinogroundSource:
    """Every example as a pair: statement i is caption_i, and the pattern is the collapsed tag.

    folder: holds the parquet files, itself or in one of `PLACES`. Warns where there are not 400 examples. Raises
    UserError for files of another form, and for an image or a caption that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.name = "winoground"
        self._files = files_in(folder)
        if not self._files:
            raise UserError(f"{folder} has no parquet file with {', '.join(sorted(COLUMNS))}: see docs/datasets.md")
        self._sides = tuple(
            ParquetSource(self._files, Options(self.name, f"image_{side}", f"caption_{side}")) for side in (0, 1)
        )
        self.patterns = tuple(str(tag) for file in self._files for tag in _tags(file))
        if len(self) != EXAMPLES:
            logger.warning("%s: %d examples, but %d are published", folder, len(self), EXAMPLES)

    def __len__(self) -> int:
        return len(self.patterns)

    def __getitem__(self, index: int) -> FilePair:
        try:
            first, second = (side[index] for side in self._sides)
        except BadImage as bad:
            raise UserError(f"cannot read {self._sides[0].place(index)}: {bad.reason}") from None
        if not (isinstance(first.image, bytes) and isinstance(second.image, bytes)):
            raise UserError(f"{self._sides[0].place(index)}: expected encoded images")
        captions = (*first.captions, *second.captions)
        if len(captions) != 2:
            raise UserError(f"{self._sides[0].place(index)}: expected one caption a column, found {captions}")
        return FilePair(self.patterns[index], (first.image, second.image), (captions[0], captions[1]))

    def stamp(self) -> str:
        return stamp_of(self._files, self.patterns)


def files_in(folder: Path) -> list[Path]:
    """The parquet files with Winoground's columns, in a folder or in one of `PLACES` in it."""
    files = [path for pattern in PLACES for path in sorted(folder.glob(f"{pattern}*.parquet"))]
    return files if files and _columns(files[0]) >= COLUMNS else []


def _tags(file: Path) -> list[str]:
    with opened(file) as content:
        tags: list[str] = pq.read_table(content, columns=["collapsed_tag"])[0].to_pylist()
    return tags


def _columns(file: Path) -> set[str]:
    try:
        with opened(file) as content:
            return set(pq.read_schema(content).names)
    except (OSError, pa.ArrowException):
        return set()
