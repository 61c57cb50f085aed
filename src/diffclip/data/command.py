"""`diffclip data verify`, `pack` and `show`: their arguments."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from diffclip.errors import UserError

Format = Literal["auto", "parquet", "tar", "csv", "folder", "scenes"]


def verify(
    path: Positional[str],
    /,
    *,
    format: Format = "auto",
    split: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    workers: int = 0,
    json: Path | None = None,
) -> None:
    """Decode every image and tokenise every caption of a data set; report sizes, repetitions and what is wrong.

    Exit status 1 where an example cannot be used, or the same image with the same captions is there twice.

    Args:
        path: A folder, a file, a pattern of shards, or scenes:SPLIT, as data.train.path of a recipe.
        format: What it is, where the file names do not tell.
        split: Which part of a folder that holds several.
        image_key: Column or extension of the image.
        caption_key: Column, extension or entry of .json of the captions.
        label_key: The same of the labels.
        workers: Processes; 0: as many as there are processors.
        json: Write the report there too, with the place of everything that is wrong.
    """
    from diffclip.data import verify as work
    from diffclip.data.parallel import processors
    from diffclip.data.sources import open_source

    source = open_source(
        path, format=format, split=split, image_key=image_key, caption_key=caption_key, label_key=label_key
    )
    work.verify(source, workers=workers or processors(), json_file=json)


def pack(
    path: Positional[str],
    /,
    *,
    out: Path,
    format: Format = "auto",
    split: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    shard_mb: float = 256,
    shard_examples: int = 10_000,
    resize: int | None = None,
    quality: int = 92,
    shuffle: int | None = None,
    workers: int = 0,
) -> None:
    """Write a data set as tar shards. The same command goes on where it was stopped.

    Args:
        path: A folder, a file, a pattern of shards, or scenes:SPLIT, as data.train.path of a recipe.
        out: The folder of the shards, new or of the same packing.
        format: What the data set is, where the file names do not tell.
        split: Which part of a folder that holds several.
        image_key: Column or extension of the image.
        caption_key: Column, extension or entry of .json of the captions.
        label_key: The same of the labels.
        shard_mb: Megabytes (10^6 bytes) of a shard, at most.
        shard_examples: Examples of a shard, at most.
        resize: Shrink images whose shorter edge is longer than this to it, as JPEG; without it files stay as they are.
        quality: Of those JPEG files, 1 to 100.
        shuffle: Seed of a random order of the examples, which streams need; without it the data set's own.
        workers: Processes; 0: as many as there are processors.
    """
    from diffclip.data import pack as work
    from diffclip.data.parallel import processors
    from diffclip.data.sources import open_source

    for name, value, least, most in (
        ("shard-mb", shard_mb, 0.01, 1e6),
        ("shard-examples", shard_examples, 1, 99_999),
        ("resize", 1 if resize is None else resize, 1, 1 << 14),
        ("quality", quality, 1, 100),
    ):
        if not least <= value <= most:
            raise UserError(f"--{name} {value}: give a number from {least:g} to {most:g}")
    plan = work.Plan(round(shard_mb * 1e6), shard_examples, resize, quality, shuffle)
    source = open_source(
        path, format=format, split=split, image_key=image_key, caption_key=caption_key, label_key=label_key
    )
    work.tell(work.pack(source, out, plan, workers=workers or processors()), out)


def show(
    path: Positional[str],
    /,
    *,
    out: Path,
    format: Format = "auto",
    split: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    count: int = 24,
    columns: int = 6,
    seed: int = 0,
) -> None:
    """Draw some examples of a data set on one sheet, with their captions.

    Args:
        path: A folder, a file, a pattern of shards, or scenes:SPLIT, as data.train.path of a recipe.
        out: The sheet, a .png file.
        format: What the data set is, where the file names do not tell.
        split: Which part of a folder that holds several.
        image_key: Column or extension of the image.
        caption_key: Column, extension or entry of .json of the captions.
        label_key: The same of the labels.
        count: How many examples.
        columns: How many side by side.
        seed: Of the random choice.
    """
    from diffclip.data import show as work
    from diffclip.data.sources import open_source

    if not (0 < count <= 1000 and columns > 0):
        raise UserError(f"--count {count} --columns {columns}: give 1 to 1000 examples in at least one column")
    source = open_source(
        path, format=format, split=split, image_key=image_key, caption_key=caption_key, label_key=label_key
    )
    work.show(source, out, count=count, columns=columns, seed=seed)
