"""Where a data set lies and how it is read, as a recipe and `diffclip data` state it."""

from dataclasses import dataclass
from typing import Literal

Format = Literal["auto", "parquet", "tar", "csv", "folder", "scenes"]


@dataclass(frozen=True, kw_only=True)
class Located:
    """A data set. Each field is an argument of `diffclip.data.sources.open_source`."""

    path: str
    """A folder, a file, a pattern of shards, or `scenes:SPLIT`."""
    format: Format = "auto"
    """What it is, where the file names do not tell."""
    split: str | None = None
    """Which part of a folder that holds several, such as `train`."""
    image_key: str | None = None
    """The column of a table's images; found by itself where there is no choice."""
    caption_key: str | None = None
    """The column of the captions, in a shard the extension or the entry of `.json`; found by itself likewise."""
    label_key: str | None = None
    """The same of the labels."""
    allow_outside: bool = False
    """Let a table name images outside of its own folder."""
