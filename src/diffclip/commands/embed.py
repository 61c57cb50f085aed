"""`diffclip embed`: features of pictures or texts in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import counted, say_loading


def embed(
    model: Positional[str],
    images: Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path,
    texts: tuple[str, ...] = (),
    texts_file: Path | None = None,
    half: bool = False,
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    batch_size: int | None = None,
) -> None:
    """Write the features of pictures, or of texts, with their ids in order.

    The same command goes on where it stopped. Status 1: some could not be read.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:OWNER/NAME.
        images: Image files, folders, patterns, tar shards, parquet or CSV files, scenes:SPLIT; - for standard input.
        out: .npz, .parquet or .safetensors: ids, and features of length 1.
        texts: Texts instead of pictures.
        texts_file: A file with further texts, one a line.
        half: Write float16.
        dtype: What the model computes in: bfloat16 takes half the memory; int8 quantises the image tower (extra onnx).
        batch_size: Pictures encoded at a time; by default what is fast on this device.
    """
    from diffclip.use.choices import lines_with

    chosen = lines_with(texts, texts_file)
    if bool(images) == bool(chosen):
        raise UserError("give pictures or --texts, and not both")
    if chosen and dtype == "int8":
        raise UserError("--dtype int8 is of the image tower: leave it out with --texts")
    say_loading()
    from diffclip.terminal import Terminal
    from diffclip.use.choices import check_all_read, progress
    from diffclip.use.embed import ENDINGS, embed_pictures, embed_texts
    from diffclip.use.encoder import open_encoder
    from diffclip.use.pictures import open_pictures
    from diffclip.use.tables import check_ending

    check_ending(out, ENDINGS)
    if chosen:
        found = embed_texts(open_encoder(model, dtype, batch_size), chosen, out, half=half)
    else:
        pictures = open_pictures(images)
        encoder = open_encoder(model, dtype, batch_size)
        with progress("embedding", len(pictures)) as told:
            found = embed_pictures(encoder, pictures, out, half=half, on_progress=told)
    Terminal().print(f"{counted(found.count, 'feature')} written to {out}", highlight=False, soft_wrap=True)
    check_all_read(found.problems, found.count)
