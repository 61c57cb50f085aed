"""`diffclip classify`: which of some labels pictures have."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import percent, say_loading

if TYPE_CHECKING:
    from diffclip.use.classify import Classified
    from diffclip.use.tables import Write


def classify(
    model: Positional[str],
    images: Positional[tuple[str, ...]],
    /,
    *,
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    templates: tuple[str, ...] = ("{c}",),
    top: int = 1,
    threshold: float = 0.0,
    out: Path | None = None,
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    batch_size: int | None = None,
) -> None:
    """Say which of some labels pictures have. Status 1: some could not be read.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:OWNER/NAME.
        images: Image files, folders, patterns, tar shards, parquet or CSV files, scenes:SPLIT; - for standard input,
            which is an image, or paths, one a line.
        labels: What to choose from: "a cat" "a dog".
        labels_file: A file with further labels, one a line.
        templates: Prompts around a label, which {c} stands for: "a photo of {c}."
        top: How many labels are shown of a picture.
        threshold: A picture whose best label is less probable than this has "none of these".
        out: All probabilities, as .csv, .jsonl or .parquet.
        dtype: bfloat16 takes half the memory; int8 quantises the image tower (extra onnx).
        batch_size: Pictures encoded at a time; by default what is fast on this device.
    """
    from diffclip.use.choices import check_all_read, checked_threshold, lines_with

    if top < 1:
        raise UserError(f"--top {top}: give at least 1")
    if not images:
        raise UserError("no pictures: give image files, folders, shards, or - for standard input")
    checked_threshold(threshold)
    chosen = lines_with(labels, labels_file)
    say_loading()
    from diffclip.terminal import Terminal
    from diffclip.use.classify import NONE, Classifier, checked_labels
    from diffclip.use.encoder import open_encoder
    from diffclip.use.pictures import open_pictures
    from diffclip.use.tables import ENDINGS, check_ending, writing

    checked_labels(chosen)
    if out is not None:
        check_ending(out, ENDINGS)
    pictures = open_pictures(images)
    classifier = Classifier(open_encoder(model, dtype, batch_size), chosen, templates)
    console, read = Terminal(), 0
    problems: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(writing(out, classifier.labels)) if out else None
        for row in classifier.of(pictures):
            found = row.top(top, threshold)
            if row.problem:
                problems[row.picture] = row.problem
            else:
                read += 1
                shown = ", ".join(f"{label} {percent(p)} %" for label, p in found) or NONE
                console.print(f"{row.picture}: {shown}", highlight=False, soft_wrap=True)
            _write(write, row, found)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, soft_wrap=True)
    check_all_read(problems, read)


def _write(write: Write | None, row: Classified, found: list[tuple[str, float]]) -> None:
    if write is not None:
        write(row, found[0][0] if found else None)
